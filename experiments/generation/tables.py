"""What is left of the merged adapters' scores, from the results files of ``merge``, in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from experiments.harness.markdown import section, table
from experiments.harness.results import seed_of
from experiments.harness.tables import spread
from sharespace.compare.size import SizeLayout, reach
from sharespace.subspace.adapter import ModuleShape

Results = Mapping[str, Any]
"""What a file of ``merge`` holds."""
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
    return [name for name, its_kind in run["kinds"].items() if its_kind == kind]


def dimensions(run: Results) -> list[int]:
    """k of the joint Share models in the file."""
    return sorted(int(name.split()[1]) for name in run["methods"] if name.startswith("joint "))


def with_originals(first: Results, run: Results) -> Results:
    """A run of another order with what the first one has and it lacks: adapters know no order."""
    return {**run, "methods": {**first["methods"], **run["methods"]}}


STARTS = {
    "own": "each adapter began with its own random A",
    "same": "all adapters began with one random A",
}


def text(runs: Sequence[Results]) -> str:
    """All tables of one start."""
    first = runs[0]
    count, start = len(all_tasks(first)), STARTS[first["start"]]
    parts = [f"# {count} adapters: {start}", "", _levels(first), ""]
    for k in dimensions(first):
        parts += [f"## k = {k} of {first['width']}", "", _batches(first, k), ""]
    return "\n".join([*parts, _summary(runs), _sizes(first)])


def related_table(runs: Sequence[Results]) -> str:
    """The same few tasks, by how their adapters began."""
    first = runs[0]
    ks = dimensions(first)
    rows = []
    for run in runs:
        levels = [f"{mean(run, m, all_tasks(run)):.1f}" for m in ("original", "base")]
        for method, shown in SHOWN.items():
            if all(key(method, k) in run["methods"] for k in ks):
                cells = [_kept(run, key(method, k)) for k in ks]
                rows.append([STARTS[run["start"]], ", ".join(levels), shown, *cells])
    return section(
        f"# {len(all_tasks(first))} of the tasks, by how their adapters began",
        f"Score kept at the end (explained variance); {len(first['batches'])} batches, one order.",
        " | ".join(["start | adapter, base model | method", *(f"k = {k}" for k in ks)]),
        rows,
    )


def _kept(run: Results, name: str) -> str:
    part = f"{relative(run, name, all_tasks(run)):.2f}"
    steps = run["methods"][name].get("steps")
    return f"{part} ({steps[-1]['explained_variance']:.2f})" if steps else part


def _levels(run: Results) -> str:
    """Scores of the adapters themselves."""
    rows = []
    for name, tasks in (
        ("all tasks", all_tasks(run)),
        ("classes (exact match)", of_kind(run, "classes")),
        ("rewriting (Rouge-L)", of_kind(run, "rewriting")),
    ):
        cells = [f"{mean(run, m, tasks):.1f}" for m in ("original", "base", "mean_adapter")]
        rows.append([f"{name} ({len(tasks)})", *cells])
    return table("percent | adapter | base model | mean adapter", rows)


def _batches(run: Results, k: int) -> str:
    """Relative score of each batch, of the first order."""
    text = f"Part of the adapters' score that is kept, batch by batch (order {seed_of(run)})."
    rows = []
    for method, shown in SHOWN.items():
        name = key(method, k)
        stages: tuple[Stage, ...] = ("after", "final")
        for stage in stages:
            if stage in run["methods"].get(name, {}):
                when = "at the end" if stage == "final" else "after its merge"
                cells = [f"{value:.2f}" for value in by_batch(run, name, stage)]
                whole = relative(run, name, all_tasks(run), stage)
                rows.append([shown, when, *cells, f"{whole:.2f}"])
        if "after" in run["methods"].get(name, {}):
            cells = [f"{value:.2f}" for value in since_merge(run, name)]
            rows.append([shown, "at the end / after its merge", *cells, "-"])
    numbers = [str(number) for number, _ in enumerate(run["batches"], 1)]
    return f"{text}\n\n{table(' | '.join(['method | scored', *numbers, 'all']), rows)}"


def _summary(runs: Sequence[Results]) -> str:
    """At the end, mean of the orders."""
    rows = []
    for k in dimensions(runs[0]):
        for method, shown in SHOWN.items():
            name = key(method, k)
            mine = [with_originals(runs[0], r) for r in runs if name in r["methods"]]
            if mine:
                rows.append([k, shown, *_row(mine, name)])
    return section(
        "## At the end of the stream",
        "Mean ± sample standard deviation over the orders (how many). Gain: of the adapters over "
        "the base model. Explained variance: 1 less the mean squared relative error.",
        "k | method | score kept | classes | rewriting | gain kept | loss | explained variance "
        "| times smaller",
        rows,
    )


def _row(runs: Sequence[Results], name: str) -> list[str]:
    parts = [relative(run, name, all_tasks(run)) for run in runs]
    gained = [gain(run, name, all_tasks(run)) for run in runs]
    steps = runs[0]["methods"][name].get("steps")
    variance, ratio = "-", "-"
    if steps:
        variance = f"{steps[-1]['explained_variance']:.2f}"
        ratio = f"{steps[-1]['adapter_bytes'] / steps[-1]['share_bytes']:.1f}"
    lost = f"{fmean(loss(run, name) for run in runs):.2f}"
    kinds = [
        f"{fmean(relative(run, name, of_kind(run, kind)) for run in runs):.2f}"
        for kind in ("classes", "rewriting")
    ]
    return [f"{spread(parts)} ({len(parts)})", *kinds, spread(gained), lost, variance, ratio]


def layout(run: Results, k: int) -> SizeLayout:
    """Of the adapters here, all modules alike."""
    side = run["width"]
    shapes = tuple(ModuleShape(side, side) for _ in range(run["modules"]))
    return SizeLayout(shapes, k=k, p=min(run["rank"], k), rank=run["rank"])


def _sizes(run: Results) -> str:
    """From how many adapters on Share is smaller, and what is shared."""
    rows = []
    for k in dimensions(run):
        reached = reach(layout(run, k), 1.0, "bytes")
        last = run["methods"][key("joint", k)]["steps"][-1]
        share, adapters = last["share_bytes"] / 1e6, last["adapter_bytes"] / 1e6
        shared = run["baselines"].get(str(k), {}).get("shared")
        part = f"{shared:.2f}" if shared is not None else "-"
        measured = f"{adapters:.2f} / {share:.2f} MB = {adapters / share:.1f}x"
        rows.append([k, reached.tasks, f"{reached.limit:.1f}", measured, part])
    return section(
        "## Bytes",
        "Bases and coefficients against the adapters, float32. Shared: part of the error of own "
        "SVDs with equally many columns that the joint subspace saves.",
        "k | Share is smaller from .. adapters on | at most .. times smaller | measured with "
        f"{len(all_tasks(run))} | shared",
        rows,
    )
