"""Learning rates and sizes, chosen on views that neither training nor the reported scores use.

    python -m experiments.pose.tune --data DATA

The last 200 training views of some categories are held out; training sees the rest. Seed 0.
The core is trained in the subspace of the own LoRAs of the categories that begin the stream; those
that are not there yet are trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.common import environment

from experiments.common import own as own_files
from experiments.common.rates import Scores, add_options, by_size
from experiments.common.runs import write
from experiments.common.transfer import subspace
from experiments.pose import script
from experiments.pose.jobs import Base, make_task, make_tasks
from experiments.pose.settings import INITIAL, ORDERS, settings
from sharespace.compare import OwnLora, Workbench

HELD_OUT = 200
LORA = (4e-3, 8e-3, 2e-2)
CORE = (1e-2, 3e-2, 1e-1)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = script.parser(__doc__, "tune.json")
    parser.add_argument("--tasks", nargs="+", default=["cow", "fandisk"])
    add_options(parser, LORA, CORE)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    base = script.begin(chosen)
    own = begun(base, chosen) if chosen.core else []
    found = {task: rates(base, task, own, chosen) for task in chosen.tasks}
    record = {"environment": environment(0), "held_out": held_out(chosen), "acc_pi_6": found}
    write(chosen.out, record)


def held_out(chosen: argparse.Namespace) -> int:
    return 8 if chosen.quick else HELD_OUT


def begun(base: Base, chosen: argparse.Namespace) -> list[OwnLora]:
    """Own LoRAs of the categories that begin the first stream."""
    size = script.size_of(chosen)
    folder = script.own_folder(chosen.cache, size, 0)
    first = next(iter(ORDERS.values()))[:INITIAL]
    jobs = [task.job() for task in make_tasks(base, first, size, 0)]
    bench = Workbench(jobs, settings(size, 0), own_files.load(folder))
    found = [bench.own_lora(name) for name in bench.tasks]
    own_files.save(folder, bench.own)
    return found


def rates(base: Base, task: str, own: list[OwnLora], chosen: argparse.Namespace) -> Scores:
    """Percent of the held-out views, by kind and rate."""
    size = script.size_of(chosen)
    job = make_task(base, task, size, 0, held_out=held_out(chosen)).job()
    numbers = settings(size, 0)
    share = subspace(job, numbers, own) if chosen.core else None
    found = by_size(job, numbers, share, size.steps, chosen)
    print(task, found, flush=True)
    return found


if __name__ == "__main__":
    main()
