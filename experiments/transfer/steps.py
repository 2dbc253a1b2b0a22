"""Steps until a new task reaches 95 % of what its own LoRA reaches in the end.

    python -m experiments steps transfer --data DATA/text --examples 256 --seeds 0 1

After ``few`` with the same examples and seeds: every way is trained once more at the rate that it
chose there, and scored on the test examples on the way. One file a new task, number of examples and
seed, ``results/steps/TASK-EXAMPLES-SEED.json``.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common import environment

from experiments.harness.experiment import opened, parser
from experiments.harness.results import read_if_there, write
from experiments.transfer.few import REPORTING, learner_of
from experiments.transfer.learners import WAYS
from experiments.transfer.tasks import TASKS, Transfer
from sharespace.errors import OptionError

COMPARED = (
    "own LoRA",
    "LoRA from the related task's",
    "zero start, related known",
    "related task as start",
)


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    choices = parser(Transfer, __doc__, seeds=[0, 1])
    choices.add_argument("--examples", type=int, nargs="+", default=[256])
    choices.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(REPORTING))
    choices.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(COMPARED))
    choices.add_argument("--every", type=int, default=8, help="steps between scores")
    options = choices.parse_args(arguments)
    experiment: Transfer = opened(Transfer, options)
    every = 1 if options.quick else options.every
    for count in options.examples:
        for seed in options.seeds:
            for task in options.tasks:
                run_task(experiment, task, count, seed, options.ways, every)


def run_task(
    experiment: Transfer, task: str, count: int, seed: int, names: Sequence[str], every: int
) -> None:
    """The curves that are not in the results file yet.

    Raises:
        OptionError: a way was not run by ``few``.
    """
    name = f"{task}-{count}-{seed}.json"
    file, of_few = experiment.results("steps") / name, experiment.results("few") / name
    rates = (read_if_there(of_few) or {"ways": {}})["ways"]
    about = {"task": task, "examples": count, "seed": seed, "environment": environment(seed)}
    results = read_if_there(file) or {**about, "curves": {}}
    for way in names:
        if way in results["curves"]:
            continue
        if way not in rates:
            raise OptionError(f"way {way!r}", f"is not in {of_few.name}", "Run few first")
        learner = learner_of(experiment, WAYS[way], task, count, seed)
        examples = experiment.drawn(task, count, seed)
        # Where nothing was best, the smallest rate: a curve needs a training.
        rate = rates[way]["rate"] or min(learner.rates)
        with learner.trained(examples, 0.0) as start:
            before = learner.test_score(start.model)
        with learner.trained(examples, rate, every) as trained:
            curve = trained.curve or {}
        results["curves"][way] = {
            "rate": rate,
            "steps": [0, *curve["steps"]],
            "scores": [before, *curve["scores"]],
        }
        print(task, count, seed, way, results["curves"][way]["scores"], flush=True)
        write(file, results)
