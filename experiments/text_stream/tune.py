"""Learning rates, chosen on examples that neither training nor the reported scores use.

    python -m experiments.text_stream.tune --data DATA/text

The last 600 training examples of three tasks are held out; each rate trains on the rest. Seed 0.
Run after ``run`` has made the own LoRAs of seed 0: the core is trained in the subspace of those of
the three tasks that begin the stream ``glue-first`` (without the task itself).
"""

from __future__ import annotations

import argparse

from benchmarks.common import environment
from experiments.common import own as own_files
from experiments.common.rates import Scores, by_rate
from experiments.common.runs import write
from experiments.common.transfer import subspace
from experiments.text_stream import script
from experiments.text_stream.jobs import Base, make_job
from experiments.text_stream.settings import FULL, ORDERS, settings

HELD_OUT = 600
LORA = (3e-3, 6e-3)
CORE = (3e-2, 6e-2, 1.2e-1)
TASKS = ("qnli", "amazon5", "boolq")


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "tune.json")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    return parser.parse_args()


def main() -> None:
    chosen = options()
    base = script.begin(chosen)
    found = {task: rates(base, task, chosen) for task in chosen.tasks}
    write(chosen.out, {"environment": environment(0), "held_out": HELD_OUT, "scores": found})


def rates(base: Base, task: str, chosen: argparse.Namespace) -> Scores:
    """Percent of the held-out examples, by kind and rate."""
    job = make_job(base, chosen.data / task, FULL, 0, chosen.cache, held_out=HELD_OUT)
    numbers = settings(FULL, 0)
    own = own_files.load(script.own_folder(chosen.cache, base, FULL, 0))
    others = [name for name in ORDERS["glue-first"] if name != task][:3]
    share = subspace(job, numbers, [own[name] for name in others])
    found = by_rate(job, numbers, share, FULL.steps, lora=LORA, core=CORE)
    print(task, found, flush=True)
    return found


if __name__ == "__main__":
    main()
