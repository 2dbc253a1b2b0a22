"""Why the paper's method may keep more of the scores than `joint`, which explains more variance.

    python -m experiments.generation.weighing --data DATA/text

After ``run``, whose adapters it takes; nothing is trained. Two things are changed, one at a time:
how much a task counts (1 / |dW|, as in the library, or 1), and whether the adapters come
in ten batches or all at once. No option of the library changes the weights, so this script alone
replaces one of its functions. One file, ``weighing.json``; what is in it already is not run again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

from benchmarks.common import environment
from experiments.common.runs import write
from experiments.generation import script
from experiments.generation.adapters import load_adapters
from experiments.generation.merging import Method, Stream, kept, originals
from experiments.generation.run import in_batches
from experiments.generation.script import Ready
from torch import Tensor

from sharespace import Share
from sharespace.linalg.updates import weights

_USED_IN = ("sharespace.subspace.build_layer.weights", "sharespace.subspace.merge_layer.weights")


@dataclass(frozen=True)
class Variant:
    """One way to make the Share model."""

    method: Method
    power: float
    """A task counts |dW|^-power."""
    batches: bool
    """In batches, or all at once."""

    @property
    def label(self) -> str:
        """Its key in the file."""
        weighed = f", weight {'1/|dW|' if self.power else 1}" if self.method == "joint" else ""
        return f"{self.method}{weighed}, {'batches' if self.batches else 'at once'}"


VARIANTS = (
    *(Variant("joint", power, batches) for batches in (True, False) for power in (1.0, 0.0)),
    *(Variant("share", 1.0, batches) for batches in (True, False)),
)


def main() -> None:
    parser = script.parser(__doc__, "")
    parser.add_argument("--k", type=int, nargs="+", help="default: the experiment's")
    chosen = parser.parse_args()
    ready = script.begin(chosen)
    stream = own_stream(ready, chosen.cache)
    file = chosen.out / "weighing.json"
    results = json.loads(file.read_text()) if file.is_file() else begin(stream, ready.tasks)
    for k in chosen.k or ready.size.dimensions:
        for variant in VARIANTS:
            mine = results["scores"].setdefault(str(k), {})
            if variant.label not in mine:
                mine[variant.label] = attempt(stream, variant, k)
                write(file, results)
                mean = fmean(s["percent"] for s in mine[variant.label]["final"].values())
                print(f"k = {k}, {variant.label}: {mean:.1f}", flush=True)


def own_stream(ready: Ready, cache: Path) -> Stream:
    """The adapters with starts of their own, in the batches of seed 0."""
    tasks = list(ready.tasks.values())
    adapters = load_adapters(ready.base, tasks, ready.size, "own", 0, cache, "")
    batches = in_batches(list(adapters), ready.size.batches, 0)
    return Stream(ready.base, adapters, {name: ready.tests[name] for name in adapters}, batches)


def begin(stream: Stream, tasks: Any) -> dict[str, Any]:
    """The adapters' own scores and norms."""
    return {
        "environment": environment(0),
        "kinds": {name: tasks[name].kind for name in stream.adapters},
        "norms": {name: norm(adapter) for name, adapter in stream.adapters.items()},
        "original": originals(stream),
        "scores": {},
    }


def norm(adapter: Any) -> float:
    """|dW| over all modules."""
    updates = [adapter.layer(module) for module in adapter.shapes]
    squares = [((u.scaling * u.up.double()) @ u.down.double()).square().sum() for u in updates]
    return math.sqrt(float(sum(squares)))


def attempt(stream: Stream, variant: Variant, k: int) -> dict[str, Any]:
    """Scores and errors at the end."""
    with counted(variant.power):
        share = built(stream, variant, k)
    final = stream.score({name: share.updates(name) for name in share.tasks})
    found = share.fidelity([stream.adapters[name] for name in share.tasks])
    errors = {name: task.relative_error for name, task in found.tasks.items()}
    explained = kept(stream, share)["explained_variance"]
    return {"final": final, "relative_error": errors, "explained_variance": explained}


def built(stream: Stream, variant: Variant, k: int) -> Share:
    """The Share model of all adapters."""
    names = [list(batch) for batch in stream.batches]
    if not variant.batches:
        names = [[name for batch in names for name in batch]]
    parts = [[stream.adapters[name] for name in batch] for batch in names]
    return merged(Share.from_adapters(parts[0], k=k, method=variant.method), parts[1:])


def merged(share: Share, parts: Sequence[Sequence[Any]]) -> Share:
    for part in parts:
        share = share.merge(part)
    return share


@contextmanager
def counted(power: float) -> Iterator[None]:
    """Tasks count |dW|^-power for the time of the block."""

    def other(norms: Tensor) -> Tensor:
        return weights(norms).pow(power)

    with ExitStack() as stack:
        for place in _USED_IN:
            stack.enter_context(patch(place, other))
        yield


def table(record: Mapping[str, Any]) -> str:
    """How much a task counts, and merging in batches against building at once."""
    kinds = {kind: _of(record, kind) for kind in ("classes", "rewriting")}
    norms = ", ".join(
        f"{fmean(record['norms'][t] for t in tasks):.2f} ({kind})" for kind, tasks in kinds.items()
    )
    lines = [
        "# How much a task counts",
        "",
        f"Score kept at the end, all {len(record['norms'])} adapters, one order. Mean |dW|: "
        f"{norms}.",
        "",
        "| k | Share model | score kept | classes | rewriting | explained variance | of classes "
        "| of rewriting |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for k, variants in record["scores"].items():
        for label, found in variants.items():
            groups = (list(record["norms"]), *kinds.values())
            cells = [f"{_part(record, found, tasks):.2f}" for tasks in groups]
            cells.append(f"{found['explained_variance']:.2f}")
            cells += [f"{_explained(found, tasks):.2f}" for tasks in kinds.values()]
            lines.append(f"| {k} | {_safe(label)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_by_variance(record)]) + "\n"


def _explained(found: Mapping[str, Any], tasks: Sequence[str]) -> float:
    """Of whole tasks, not module by module: larger modules count for more."""
    return 1 - fmean(found["relative_error"][task] ** 2 for task in tasks)


def _by_variance(record: Mapping[str, Any]) -> list[str]:
    """Is the score of a choice between classes a matter of the error alone?"""
    labels = [v.label for v in VARIANTS if v.power == 1.0]
    lines = [
        "Choices between classes: score kept (how many) by the variance that is explained of the "
        f"task, k = {' and '.join(record['scores'])}:",
        "",
        f"| explained variance | {' | '.join(map(_safe, labels))} |",
        "|---|" + "---|" * len(labels),
    ]
    for low in range(10, 60, 10):
        cells = [_between(record, label, low, low + 10) for label in labels]
        lines.append(f"| {low} to {low + 10} % | {' | '.join(cells)} |")
    return lines


def _between(record: Mapping[str, Any], label: str, low: int, high: int) -> str:
    """Of the classes' tasks of which so many percent are explained."""
    pairs = [
        (found["final"][task]["percent"], record["original"][task]["percent"])
        for found in (v[label] for v in record["scores"].values() if label in v)
        for task in _of(record, "classes")
        if low <= 100 * _explained(found, [task]) < high
    ]
    own = sum(pair[1] for pair in pairs)
    return f"{sum(pair[0] for pair in pairs) / own if own else 0:.2f} ({len(pairs)})"


def _safe(label: str) -> str:
    """In a table."""
    return label.replace("|", "\\|")


def _of(record: Mapping[str, Any], kind: str) -> list[str]:
    return [name for name, found in record["kinds"].items() if found == kind]


def _part(record: Mapping[str, Any], found: Mapping[str, Any], tasks: Sequence[str]) -> float:
    """Part of the adapters' mean score that is kept: a ratio of means."""
    mine, own = (
        fmean(scores[task]["percent"] for task in tasks)
        for scores in (found["final"], record["original"])
    )
    return mine / own if own else 0.0


if __name__ == "__main__":
    main()
