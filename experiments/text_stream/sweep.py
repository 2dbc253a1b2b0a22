"""Where learning in the subspace breaks: one task at a time, one number changed at a time. Seed 0.

    python -m experiments sweep text_stream --data DATA/text

No stream and no merge: a task is learned in the subspace of three others' own LoRAs and scored on
its test examples. Nothing was chosen by these figures. After ``run``, which leaves the own LoRAs in
the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.common import environment

from experiments.harness.experiment import opened, parser
from experiments.harness.results import write
from experiments.harness.training import subspace, trained_core
from experiments.text_stream.experiment import ORDERS, TextStream
from sharespace.compare import ComparisonSettings, OwnLora

TASKS = {"amazon5": "glue-first", "yelp5": "glue-first", "qnli": "reviews-first"}
"""Task -> the order whose first three tasks make its subspace."""
_FACTORS = {"form": "factors", "p": 6, "phi": 0, "directions": "random", "rate": 1e-2}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "as in the stream (core 17, phi 6, rate 0.03)": {},
    "rate 0.01": {"rate": 1e-2},
    "rate 0.1": {"rate": 1e-1},
    "directions at random": {"directions": "random"},
    "phi 0: directions of the subspace only": {"phi": 0},
    "phi 17: none of the subspace": {"phi": 17},
    "core 6 (phi 3): 171 times fewer": {"p": 6, "phi": 3},
    "core 32 (phi 6): 6 times fewer": {"p": 32},
    "factors k 24, p 6, phi 0, rate 0.01": _FACTORS,
    "the same from the mean core": {**_FACTORS, "start": "mean"},
    "factors with 2 trained directions a side": {**_FACTORS, "p": 8, "phi": 2, "rate": 5e-3},
}


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    choices = parser(TextStream, __doc__, seeds=[0])
    choices.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    choices.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = choices.parse_args(arguments)
    experiment: TextStream = opened(TextStream, options)
    results: dict[str, Any] = {"environment": environment(0), "tasks": {}}
    for task in options.tasks:
        first = ORDERS[TASKS[task]][:3]
        own = experiment.own_loras([*first, task], 0)
        job = experiment.job(task, 0)
        scores = {"own LoRA": own[task].score, "head only": job.score(job.model())}
        results["tasks"][task] = scores
        for name in options.variants:
            earlier = [own[n] for n in first]
            scores[name] = attempt(experiment, task, earlier, VARIANTS[name])
            print(task, name, scores[name], flush=True)
            write(options.out / "sweep.json", results)


def attempt(
    experiment: TextStream, task: str, earlier: Sequence[OwnLora], changed: Mapping[str, Any]
) -> Any:
    """Percent of the test examples, and numbers trained a module."""
    job, settings = experiment.job(task, 0), with_changes(experiment.settings(0, 7), changed)
    share = subspace(job, settings, earlier)
    with trained_core(job, settings, share, job.model()) as (model, trained):
        return {"score": job.score(model), "trained a module": trained / len(share.model.layers)}


def with_changes(settings: ComparisonSettings, changed: Mapping[str, Any]) -> ComparisonSettings:
    """The settings with another rate of the core, and another method of the task."""
    fields = dict(changed)
    rate = fields.pop("rate", settings.coefficients.learning_rate)
    coefficients = replace(settings.coefficients, learning_rate=rate)
    return replace(settings, coefficients=coefficients, method=replace(settings.method, **fields))
