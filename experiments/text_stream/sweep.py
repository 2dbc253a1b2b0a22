"""Where learning in the subspace breaks: one task at a time, one number changed at a time. Seed 0.

    python -m experiments.text_stream.sweep --data DATA/text

No stream and no merge: a task is learned in the subspace of three others' own LoRAs and scored on
its test examples. Nothing was chosen by these figures. Run after ``run`` (it uses its own LoRAs).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.common import environment
from experiments.common import own as own_files
from experiments.common.runs import write
from experiments.text_stream import script
from experiments.text_stream.jobs import Base, make_job
from experiments.text_stream.settings import FULL, ORDERS, settings

from sharespace import Share
from sharespace.learn import adapt
from sharespace.tuner import release

TASKS = {"amazon5": "glue-first", "yelp5": "glue-first", "qnli": "reviews-first"}
"""Task -> the order whose first three tasks make its subspace."""
REFERENCE: Mapping[str, Any] = {}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "as in the stream (core 17, phi 6, rate 0.03)": REFERENCE,
    "rate 0.01": {"rate": 1e-2},
    "rate 0.1": {"rate": 1e-1},
    "directions at random": {"directions": "random"},
    "phi 0: directions of the subspace only": {"phi": 0},
    "phi 17: none of the subspace": {"phi": 17},
    "core 6 (phi 3): 171 times fewer": {"p": 6, "phi": 3},
    "core 32 (phi 6): 6 times fewer": {"p": 32},
    "factors k 24, p 6, phi 0, rate 0.01": {
        "form": "factors",
        "p": 6,
        "phi": 0,
        "directions": "random",
        "rate": 1e-2,
    },
    "the same from the mean core": {
        "form": "factors",
        "p": 6,
        "phi": 0,
        "directions": "random",
        "rate": 1e-2,
        "start": "mean",
    },
    "factors with 2 trained directions a side": {
        "form": "factors",
        "p": 8,
        "phi": 2,
        "directions": "random",
        "rate": 5e-3,
    },
}


def main() -> None:
    parser = script.parser(__doc__, "sweep.json")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    chosen = parser.parse_args()
    base = script.begin(chosen)
    own = own_files.load(script.own_folder(chosen.cache, base, FULL, 0))
    found: dict[str, Any] = {"environment": environment(0), "tasks": {}}
    for task in chosen.tasks:
        share = Share.from_adapters([own[n].adapter for n in ORDERS[TASKS[task]][:3]], k=48)
        found["tasks"][task] = {"own LoRA": own[task].score}
        job = make_job(base, chosen.data / task, FULL, 0, chosen.cache)
        found["tasks"][task]["head only"] = job.score(job.model())
        for name, changed in VARIANTS.items():
            found["tasks"][task][name] = score(base, task, share, changed, chosen)
            print(task, name, found["tasks"][task][name], flush=True)
            write(chosen.out, found)


def score(
    base: Base, task: str, share: Share, changed: Mapping[str, Any], chosen: argparse.Namespace
) -> dict[str, float]:
    """Percent of the test examples, and numbers trained a module."""
    numbers = settings(FULL, 0)
    job = make_job(base, chosen.data / task, FULL, 0, chosen.cache)
    rate = changed.get("rate", numbers.coefficients.learning_rate)
    own = {name: value for name, value in changed.items() if name != "rate"}
    method = replace(numbers.method, heads=job.heads, **own)
    training = replace(numbers.coefficients, learning_rate=rate, seed=0)
    learned = adapt(
        job.model(), share, job.data, training, task=task, method=method, setup=job.setup
    )
    found = job.score(learned.model.eval())
    release(learned.model)
    trained = learned.trainable.coefficients + learned.trainable.temporary
    return {"score": found, "trained a module": trained / len(share.model.layers)}


if __name__ == "__main__":
    main()
