"""New tasks with few examples: what known tasks are worth, related or not.

    python -m experiments few transfer --data DATA/text --examples 64 --seeds 0 1

A quarter of the examples is held out, and each way is trained on the rest at the same number of
learning rates, 0 (nothing is trained) among them. The rate with the smallest loss on what was held
out, at the best temperature, is then trained on all examples, and scored once on the test examples.
One file a new task, number of examples and seed, ``results/few/TASK-EXAMPLES-SEED.json``, written
after each way; a way that is in it already is not run again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import environment

from experiments.harness.experiment import opened, parser
from experiments.harness.results import read_if_there, write
from experiments.text_stream.model import accuracy
from experiments.transfer.learners import WAYS, Learner, Way, loss_of
from experiments.transfer.tasks import TASKS, Transfer

REPORTING = tuple(name for name, task in TASKS.items() if not task.decides)


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    choices = parser(Transfer, __doc__, seeds=[0, 1])
    choices.add_argument("--examples", type=int, nargs="+", default=[64])
    choices.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(REPORTING))
    choices.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = choices.parse_args(arguments)
    experiment: Transfer = opened(Transfer, options)
    for count in options.examples:
        for seed in options.seeds:
            for task in options.tasks:
                run_task(experiment, task, count, seed, [WAYS[name] for name in options.ways])


def run_task(experiment: Transfer, task: str, count: int, seed: int, ways: Sequence[Way]) -> None:
    """All ways that are not in the results file yet."""
    file = experiment.results("few") / f"{task}-{count}-{seed}.json"
    results = read_if_there(file) or {
        "task": task,
        "examples": count,
        "seed": seed,
        "ways": {},
        "environment": environment(seed),
    }
    missing = [way for way in ways if way.name not in results["ways"]]
    for way in missing:
        results["ways"][way.name] = tried(learner_of(experiment, way, task, count, seed), count)
        print(task, count, seed, way.name, results["ways"][way.name], flush=True)
        write(file, results)


def learner_of(experiment: Transfer, way: Way, task: str, count: int, seed: int) -> Learner:
    """A way to learn a task from so many examples, its known tasks' own LoRAs at hand."""
    names = TASKS[task].known(way.known) if way.known else ()
    known = experiment.own_loras(names, seed)
    settings = experiment.few_settings(seed, count, len(TASKS[task].known("related")))
    return Learner(way, experiment, task, seed, settings, known)


def tried(learner: Learner, count: int) -> dict[str, Any]:
    """The rate that is chosen, and the test score at it."""
    examples = learner.experiment.drawn(learner.task, count, learner.seed)
    held_out = max(len(examples) // 4, 1)
    # Every beginning of the examples has the labels in proportion.
    aside, rest = examples.subset(held_out), examples.after(held_out)
    began = time.process_time()
    losses: dict[str, float] = {}
    held_scores: dict[str, float] = {}
    for rate in (0.0, *learner.rates):
        with learner.trained(rest, rate) as trained:
            losses[f"{rate:g}"] = loss_of(trained.model, aside)
            held_scores[f"{rate:g}"] = accuracy(trained.model, aside)
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    best = float(min(finite, key=finite.__getitem__))
    chosen_by = time.process_time() - began
    began = time.process_time()
    with learner.trained(examples, best) as trained:
        trained_in = time.process_time() - began
        score = learner.test_score(trained.model)
    return {
        "score": score,
        "rate": best,
        "trained": trained.numbers,
        "held_out_loss": losses,
        "held_out_score": held_scores,
        "seconds": {"choosing": chosen_by, "training": trained_in},
    }
