"""What is kept of the adapters' scores, from a results file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

Results = Mapping[str, Any]
"""What a file of ``run`` holds."""
Stage = Literal["after", "final"]
"""Right after the batch's merge, or at the end of the stream."""
SHOWN = {
    "joint": "joint (ours)",
    "share": "share (the paper's)",
    "own_svd": "each adapter's own SVD, equal bytes",
    "random_basis": "random basis",
    "mean_adapter": "mean adapter",
    "base": "base model, no adapter",
}
"""Method -> what it is called."""


def key(method: str, k: int) -> str:
    """A method's name in the file."""
    return method if method in ("mean_adapter", "base", "original") else f"{method} {k}"


def mean(run: Results, name: str, tasks: Sequence[str], stage: Stage = "final") -> float:
    """Percent, over some tasks."""
    return fmean(run["methods"][name][stage][task]["percent"] for task in tasks)


def relative(run: Results, name: str, tasks: Sequence[str], stage: Stage = "final") -> float:
    """Part of the adapters' mean score that is kept: a ratio of means over the tasks."""
    original = mean(run, "original", tasks)
    return mean(run, name, tasks, stage) / original if original else 0.0


def gain(run: Results, name: str, tasks: Sequence[str], stage: Stage = "final") -> float:
    """Part of what the adapters gain over the base model that is kept."""
    base = mean(run, "base", tasks)
    whole = mean(run, "original", tasks) - base
    return (mean(run, name, tasks, stage) - base) / whole if whole else 0.0


def loss(run: Results, name: str) -> float:
    """Nats a token of the references, mean over all tasks, at the end."""
    return fmean(score["loss"] for score in run["methods"][name]["final"].values())


def by_batch(run: Results, name: str, stage: Stage) -> list[float]:
    """``relative`` of each batch."""
    return [relative(run, name, batch, stage) for batch in run["batches"]]


def since_merge(run: Results, name: str) -> list[float]:
    """Part of each batch's score right after its merge that is left at the end."""
    both = zip(by_batch(run, name, "final"), by_batch(run, name, "after"), strict=True)
    return [last / first if first else 0.0 for last, first in both]


def all_tasks(run: Results) -> list[str]:
    return list(run["kinds"])


def of_kind(run: Results, kind: str) -> list[str]:
    """Tasks of one kind."""
    return [name for name, found in run["kinds"].items() if found == kind]


def dimensions(run: Results) -> list[int]:
    """k of the joint Share models in the file."""
    return sorted(int(name.split()[1]) for name in run["methods"] if name.startswith("joint "))


def with_originals(first: Results, run: Results) -> Results:
    """A run of another order with what the first one has and it lacks: adapters know no order."""
    return {**run, "methods": {**first["methods"], **run["methods"]}}
