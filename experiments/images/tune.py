"""Learning rates and sizes, chosen on examples that neither training nor the reported scores use.

    python -m experiments.images.tune --data DATA --base mobilenet

The last 300 training examples of some tasks are held out; training sees the rest. Seed 0.
The core is trained in the subspace of the own LoRAs of the tasks that begin the base's first
stream; those that are not there yet are trained.
"""

from __future__ import annotations

import argparse

from benchmarks.common import environment
from experiments.common import own as own_files
from experiments.common.rates import Scores, add_options, by_size
from experiments.common.runs import write
from experiments.common.transfer import subspace
from experiments.images import script
from experiments.images.base import Base
from experiments.images.jobs import make_job, make_jobs
from experiments.images.settings import INITIAL, STREAMS, Size

from sharespace.compare import OwnLora, Workbench

HELD_OUT = 300
LORA = (2e-3, 4e-3, 8e-3)
CORE = (1e-2, 3e-2, 1e-1)
TASKS = {"mobilenet": ("cifar-6", "fashion-rotated"), "vit": ("odd-4", "fashion-rotated")}


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "tune")
    parser.add_argument("--tasks", nargs="+", help="default: one of each stream")
    add_options(parser, LORA, CORE)
    return parser.parse_args()


def main() -> None:
    chosen = options()
    base, size = script.begin(chosen)
    own = begun(base, size, chosen)
    tasks = chosen.tasks or TASKS[chosen.base]
    found = {task: rates(base, size, task, own, chosen) for task in tasks}
    record = {"environment": environment(0), "held_out": held_out(chosen), "scores": found}
    write(chosen.out / f"{chosen.base}.json", record)


def held_out(chosen: argparse.Namespace) -> int:
    return 8 if chosen.quick else HELD_OUT


def begun(base: Base, size: Size, chosen: argparse.Namespace) -> list[OwnLora]:
    """Own LoRAs of the tasks that begin the first stream."""
    stream = next(iter(STREAMS[chosen.base].values()))
    folder = script.own_folder(chosen.cache, base, size, 0)
    images, cache = chosen.data / script.IMAGES, chosen.cache / "features"
    jobs = make_jobs(base, images, stream[:INITIAL], size, 0, cache)
    numbers = script.numbers(base, chosen.base, size, 0, len(stream))
    bench = Workbench(jobs, numbers, own_files.load(folder))
    found = [bench.own_lora(name) for name in bench.tasks]
    own_files.save(folder, bench.own)
    return found


def rates(
    base: Base, size: Size, task: str, own: list[OwnLora], chosen: argparse.Namespace
) -> Scores:
    """Percent of the held-out examples, by kind and rate."""
    images, cache = chosen.data / script.IMAGES, chosen.cache / "features"
    job = make_job(base, images, task, size, 0, cache, held_out=held_out(chosen))
    numbers = script.numbers(base, chosen.base, size, 0, INITIAL + 1)
    share = subspace(job, numbers, own)
    found = by_size(job, numbers, share, size.steps, chosen)
    print(task, found, flush=True)
    return found


if __name__ == "__main__":
    main()
