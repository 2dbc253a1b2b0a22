"""The table of ``weighing``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.harness.markdown import section
from experiments.harness.markdown import table as markdown_table

AS_IN_THE_LIBRARY = ("joint, weight 1/|dW|", "share")
"""Share models whose tasks count as the library has it."""


def table(record: Mapping[str, Any]) -> str:
    """How much a task counts, and merging in batches against building at once."""
    kinds = {kind: _of(record, kind) for kind in ("classes", "rewriting")}
    norms = ", ".join(
        f"{fmean(record['norms'][t] for t in tasks):.2f} ({kind})" for kind, tasks in kinds.items()
    )
    rows = []
    for k, variants in record["scores"].items():
        for label, measured in variants.items():
            groups = (list(record["norms"]), *kinds.values())
            cells = [f"{_part(record, measured, tasks):.2f}" for tasks in groups]
            cells.append(f"{measured['explained_variance']:.2f}")
            cells += [f"{_explained(measured, tasks):.2f}" for tasks in kinds.values()]
            rows.append([k, _safe(label), *cells])
    whole = section(
        "# How much a task counts",
        f"Score kept at the end, all {len(record['norms'])} adapters, one order. Mean |dW|: "
        f"{norms}.",
        "k | Share model | score kept | classes | rewriting | explained variance | of classes "
        "| of rewriting",
        rows,
    )
    return f"{whole}\n{_by_variance(record)}\n"


def _explained(measured: Mapping[str, Any], tasks: Sequence[str]) -> float:
    """Of whole tasks, not module by module: larger modules count for more."""
    return 1 - fmean(measured["relative_error"][task] ** 2 for task in tasks)


def _by_variance(record: Mapping[str, Any]) -> str:
    """Is the score of a choice between classes a matter of the error alone?"""
    labels = [f"{name}, {way}" for name in AS_IN_THE_LIBRARY for way in ("batches", "at once")]
    text = (
        "Choices between classes: score kept (how many) by the variance that is explained of the "
        f"task, k = {' and '.join(record['scores'])}:"
    )
    rows = [
        [f"{low} to {low + 10} %", *(_between(record, label, low, low + 10) for label in labels)]
        for low in range(10, 60, 10)
    ]
    header = " | ".join(["explained variance", *map(_safe, labels)])
    return f"{text}\n\n{markdown_table(header, rows)}"


def _between(record: Mapping[str, Any], label: str, low: int, high: int) -> str:
    """Of the classes' tasks of which so many percent are explained."""
    pairs = [
        (measured["final"][task]["percent"], record["original"][task]["percent"])
        for measured in (v[label] for v in record["scores"].values() if label in v)
        for task in _of(record, "classes")
        if low <= 100 * _explained(measured, [task]) < high
    ]
    own = sum(pair[1] for pair in pairs)
    return f"{sum(pair[0] for pair in pairs) / own if own else 0:.2f} ({len(pairs)})"


def _safe(label: str) -> str:
    """In a table."""
    return label.replace("|", "\\|")


def _of(record: Mapping[str, Any], kind: str) -> list[str]:
    return [name for name, its in record["kinds"].items() if its == kind]


def _part(record: Mapping[str, Any], measured: Mapping[str, Any], tasks: Sequence[str]) -> float:
    """Part of the adapters' mean score that is kept: a ratio of means."""
    mine, own = (
        fmean(scores[task]["percent"] for task in tasks)
        for scores in (measured["final"], record["original"])
    )
    return mine / own if own else 0.0
