"""Forward transfer: how soon a new task is learned in the subspace of 0, 1, 3 or 6 earlier tasks.

    python -m experiments.text_stream.transfer --data DATA/text --seeds 0 1 2

For each new task: its own LoRA from scratch, and one core in the subspace of the own LoRAs of so
many other tasks (0: a random basis of the same size), everything else the same. Scored every few
steps on the test examples; the table says when a curve first reaches a part of what own LoRA
reaches at its end. Run after ``run``: it uses the own LoRAs that ``run`` left in the cache.
"""

from __future__ import annotations

import argparse
from typing import Any

from experiments.common import own as own_files
from experiments.common import transfer
from experiments.common.runs import write
from experiments.text_stream import script
from experiments.text_stream.jobs import Base, make_job
from experiments.text_stream.settings import FULL, ORDERS, QUICK, settings

TARGETS = ("qnli", "amazon5", "mnli")


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "transfer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--every", type=int, default=20, help="steps between scores")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    base = script.begin(chosen)
    for seed in chosen.seeds:
        for target in chosen.targets:
            file = chosen.out / f"{target}-{seed}.json"
            if not file.is_file():
                write(file, measure(base, target, seed, chosen))


def measure(base: Base, target: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """All curves of one new task."""
    size = QUICK if chosen.quick else FULL
    own = own_files.load(script.own_folder(chosen.cache, base, size, seed))
    earlier = {name: own[name] for name in ORDERS["glue-first"] if name != target}
    job = make_job(base, chosen.data / target, size, seed, chosen.cache)
    return transfer.measure(job, settings(size, seed), earlier, 1 if chosen.quick else chosen.every)


if __name__ == "__main__":
    main()
