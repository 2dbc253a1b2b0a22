"""Forward transfer: does a new task learn faster in the subspace of more earlier tasks?

    python -m experiments.images.transfer --data DATA --base mobilenet --seeds 0

For each new task: a LoRA from scratch, and one core in the subspace of the own LoRAs of 0, 1, 3
and 6 other tasks of the base's first stream (0: a random basis of the same size). Scored every few
steps on the test examples. Run after ``run``, which leaves the own LoRAs in the cache.
"""

from __future__ import annotations

import argparse
from typing import Any

from experiments.common import own as own_files
from experiments.common import transfer
from experiments.common.runs import write
from experiments.images import script
from experiments.images.base import Base
from experiments.images.jobs import make_job
from experiments.images.settings import STREAMS, Size

TARGETS = {"mobilenet": ("cifar-4",), "vit": ("odd-4",)}


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "transfer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--targets", nargs="+", help="default: one of the first stream")
    parser.add_argument("--every", type=int, default=20, help="steps between scores")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    base, size = script.begin(chosen)
    for seed in chosen.seeds:
        for target in chosen.targets or TARGETS[chosen.base]:
            file = chosen.out / chosen.base / f"{target}-{seed}.json"
            if not file.is_file():
                write(file, measure(base, size, target, seed, chosen))


def measure(
    base: Base, size: Size, target: str, seed: int, chosen: argparse.Namespace
) -> dict[str, Any]:
    """All curves of one new task."""
    own = own_files.load(script.own_folder(chosen.cache, base, size, seed))
    stream = next(iter(STREAMS[chosen.base].values()))
    earlier = {name: own[name] for name in stream if name != target}
    images, cache = chosen.data / script.IMAGES, chosen.cache / "features"
    job = make_job(base, images, target, size, seed, cache)
    numbers = script.numbers(base, chosen.base, size, seed, len(stream))
    every = 1 if chosen.quick else chosen.every
    return {"base": chosen.base, **transfer.measure(job, numbers, earlier, every)}


if __name__ == "__main__":
    main()
