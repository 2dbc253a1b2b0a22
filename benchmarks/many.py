"""Error at equal bytes against the number of adapters, 10 to 1000: who should share what.

Every contender gets the same bytes, a fraction of the adapters' own (float32). Strangers, relatives
and a mix of groups and independently trained adapters, all trained here (``many_sets``). What is
*stored* is measured for own SVDs and for the budget, in the dtype and with every byte of the files;
the other contenders are known from the energies in their bases, before any sweep."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common, many_sets
from benchmarks.errors import real_sets
from sharespace import Share
from sharespace.formats import read_adapter
from sharespace.linalg.allocate import (
    LayerOption,
    LayerOptions,
    own_svd_options,
    split_budget,
)
from sharespace.linalg.dimension import Dimension
from sharespace.linalg.joint import hosvd
from sharespace.linalg.problem import UpdateProblem
from sharespace.linalg.task_options import TaskOptions, task_options
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.build import initialise, new_task
from sharespace.subspace.build_budgeted import per_task_layer
from sharespace.subspace.build_layer import LayerResult, read_updates
from sharespace.subspace.fidelity import measure, sizes
from sharespace.subspace.merge import merge
from sharespace.subspace.state import ShareModel

ITEM = 4
"""Bytes of a float32."""
FILES = 100
"""Up to so many adapters the files of a store are written and weighed, too."""
OWN, BUDGET = "own SVD, stored", "--budget, stored"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    results = _begun(options)
    base = many_sets.base_model(options.seed)
    real = {name: _shuffled(_open(paths), options.seed)
            for name, paths in real_sets(options.adapters).items()}  # fmt: skip
    for count in options.counts:
        for label, make in many_sets.SETS.items():
            paths = make(base, count, options.steps, options.cache)
            _add(results, label, _open(paths), options)
        for label, adapters in real.items():
            if count <= len(adapters):
                _add(results, label, adapters[:count], options)
    adapters = _open(many_sets.mix(base, options.merged, options.steps, options.cache))
    mixed = _shuffled(adapters, options.seed)
    results["merges"] = merges(mixed, options.fraction, options.batches)
    results["environment"] = common.environment(options.seed)
    common.write_results(options.out, results)
    print(report(results))
    if options.figure:
        draw(results, options.out.with_suffix(".png"))


def _open(paths: Mapping[str, Path]) -> list[Adapter]:
    return [read_adapter(path, name) for name, path in paths.items()]


def _shuffled(adapters: Sequence[Adapter], seed: int) -> list[Adapter]:
    order = torch.randperm(len(adapters), generator=torch.Generator().manual_seed(seed))
    return [adapters[i] for i in order.tolist()]


def _begun(options: argparse.Namespace) -> dict[str, Any]:
    """What an interrupted run has left, with ``--resume``."""
    if options.resume and options.out.exists():
        found: dict[str, Any] = json.loads(options.out.read_text())
        return found
    return {"fraction": options.fraction, "sets": {}}


def _add(
    results: dict[str, Any], label: str, adapters: Sequence[Adapter], options: argparse.Namespace
) -> None:
    counts = results["sets"].setdefault(label, {})
    if str(len(adapters)) in counts:
        return
    found = counts[str(len(adapters))] = compare(adapters, options.fraction)
    results["environment"] = common.environment(options.seed)
    common.write_results(options.out, results)
    means = {name: round(row["mean"], 4) for name, row in found["rows"].items()}
    print(f"{label} {len(adapters)}: {means}", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "many")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--fraction", type=float, default=1 / 16, help="of the adapters' bytes")
    parser.add_argument("--steps", type=int, default=many_sets.STEPS)
    parser.add_argument(
        "--adapters", nargs="*", default=[], metavar="FOLDER", help="PEFT directories, one set each"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/many"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--merged", type=int, default=100, help="adapters of the mix, in batches")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--resume", action="store_true", help="leave out what --out has already")
    parser.add_argument("--no-figure", dest="figure", action="store_false")
    return parser.parse_args(arguments)


@dataclass(frozen=True, eq=False)
class Module:
    """One module of a set, its tasks weighed as a budget weighs them."""

    name: str
    tasks: list[str]
    problem: UpdateProblem

    @property
    def sides(self) -> int:
        return self.problem.updates.left.shape[0] + self.problem.updates.right.shape[0]


def compare(adapters: Sequence[Adapter], fraction: float) -> dict[str, Any]:
    """All contenders at the same bytes: mean and worst relative error of a task."""
    full = ITEM * sum(r * a.shapes[m].sides for a in adapters for m, r in a.ranks.items())
    budget = int(fraction * full)
    weighed = len(adapters) <= FILES
    modules = read_modules(adapters)
    all_options = [_menu(m.problem) for m in modules]
    own = [own_svd_options(m.problem.updates, ITEM) for m in modules]
    began = time.process_time()
    model = initialise(adapters, Dimension(budget=budget))
    seconds = time.process_time() - began
    rows = {
        "one subspace, one k": _one_k(modules, all_options, budget),
        "subspace or own SVDs, by module": _by_module(modules, all_options, own, budget),
        "rank and private by task": _by_task(modules, all_options, budget),
        OWN: _stored(_own_model(modules, own, adapters, budget), adapters, files=weighed),
        BUDGET: _stored(model, adapters, files=weighed),
    }
    return {"budget_bytes": budget, "lora_bytes": full, "seconds": seconds, "rows": rows,
            "chosen": _chosen(model)}  # fmt: skip


def read_modules(adapters: Sequence[Adapter]) -> list[Module]:
    names = list(dict.fromkeys(m for a in adapters for m in a.shapes))
    members = {m: [a for a in adapters if m in a.shapes] for m in names}
    updates = {m: read_updates(members[m], m, torch.device("cpu")) for m in names}
    totals: dict[str, float] = {}
    for m in names:
        for a, norm in zip(members[m], updates[m].norms.tolist(), strict=True):
            totals[a.name] = totals.get(a.name, 0.0) + norm**2
    inverse = {n: (x**-0.5 if x else 0.0) for n, x in totals.items()}
    return [
        Module(
            m,
            [a.name for a in members[m]],
            UpdateProblem(updates[m], torch.tensor([inverse[a.name] for a in members[m]]).double()),
        )
        for m in names
    ]


def _menu(problem: UpdateProblem) -> TaskOptions:
    limit = min(problem.updates.left.shape[0], problem.updates.right.shape[0])
    return task_options(problem, hosvd(problem, (limit, limit)), ITEM)


def _summary(modules: Iterable[Module], lost: Iterable[Tensor], nbytes: float) -> dict[str, float]:
    """From the energy that each task loses in each module."""
    squares: dict[str, float] = {}
    for module, energies in zip(modules, lost, strict=True):
        relative = (module.problem.weights.square() * energies).tolist()
        for name, value in zip(module.tasks, relative, strict=True):
            squares[name] = squares.get(name, 0.0) + value
    errors = [math.sqrt(max(x, 0.0)) for x in squares.values()]
    return {"mean": sum(errors) / len(errors), "worst": max(errors),
            "square": sum(squares.values()), "bytes": nbytes}  # fmt: skip


def _equal_k(module: Module, options: TaskOptions) -> list[tuple[int, int, Tensor]]:
    """(k, bytes, lost [tasks]) of one subspace for all tasks, nothing private, full rank."""
    found = []
    ranks = torch.tensor(module.problem.updates.ranks)
    rights = options.ladders[1].tolist()
    for i, k in enumerate(options.ladders[0].tolist()):
        if k in rights:
            core = torch.where(ranks < k, 2 * k * ranks, k * k)
            nbytes = ITEM * (k * module.sides + int(core.sum()))
            last = torch.minimum(ranks, torch.tensor(k))
            lost = options.lost[i, rights.index(k)].gather(1, last[:, None])[:, 0]
            found.append((k, nbytes, lost))
    return found


def _one_k(
    modules: Sequence[Module], all_options: Sequence[TaskOptions], budget: int
) -> dict[str, float]:
    """The largest k, the same in every module, whose bytes fit; nothing where none does."""
    curves = [
        {k: (b, x) for k, b, x in _equal_k(m, c)} for m, c in zip(modules, all_options, strict=True)
    ]
    best = _summary(modules, [c.own_lost[:, 0] for c in all_options], 0)
    for k in sorted(set.intersection(*(set(c) for c in curves))):
        nbytes = sum(c[k][0] for c in curves)
        if nbytes <= budget:
            best = _summary(modules, [c[k][1] for c in curves], nbytes)
    return best


def _by_module(
    modules: Sequence[Module],
    all_options: Sequence[TaskOptions],
    own: Sequence[LayerOptions],
    budget: int,
) -> dict[str, float]:
    """One subspace for all tasks of a module, or own SVDs for all of them."""
    offers, curves = [], []
    for module, options, profile in zip(modules, all_options, own, strict=True):
        square = module.problem.weights.square()
        curve = {k: (b, x) for k, b, x in _equal_k(module, options)}
        curves.append(curve)
        shared = tuple(
            LayerOption(b, float((square * x).sum()), group_ks=((k, k),))
            for k, (b, x) in curve.items()
        )
        offers.append(replace(profile, shared=shared).affordable(module.problem.weights, budget))
    points = split_budget(offers, budget)
    lost = [
        _own_lost(p, m, point) if point.is_own else c[point.group_ks[0][0]][1]
        for m, p, c, point in zip(modules, own, curves, points, strict=True)
    ]
    return _summary(modules, lost, sum(p.nbytes for p in points))


def _own_lost(profile: LayerOptions, module: Module, point: LayerOption) -> Tensor:
    ranks = torch.tensor(profile.own_ranks(module.problem.weights, point.columns))
    index = torch.arange(profile.own.shape[1])
    return (profile.own * (index >= ranks[:, None])).sum(1)


def _by_task(
    modules: Sequence[Module], all_options: Sequence[TaskOptions], budget: int
) -> dict[str, float]:
    """Every task takes its own rank in one subspace, or is private; one price for all bytes."""
    low, high = 1e-14, 1.0
    best = _summary(modules, [options.own_lost[:, 0] for options in all_options], 0)
    for _ in range(24):
        price = math.sqrt(low * high)
        chosen = [
            c.choose(price, m.problem.weights) for m, c in zip(modules, all_options, strict=True)
        ]
        nbytes = sum(found.nbytes for found in chosen)
        if nbytes <= budget:
            high, best = price, _summary(modules, [found.lost for found in chosen], nbytes)
        else:
            low = price
    return best


def _own_model(
    modules: Sequence[Module], own: Sequence[LayerOptions], adapters: Sequence[Adapter], budget: int
) -> ShareModel:
    """A Share model of own SVDs alone, split over modules and tasks as well as can be."""
    points = split_budget(
        [p.affordable(m.problem.weights, budget) for m, p in zip(modules, own, strict=True)], budget
    )
    results = {}
    for module, profile, point in zip(modules, own, points, strict=True):
        ranks = profile.own_ranks(module.problem.weights, point.columns)
        shape = next(a.shapes[module.name] for a in adapters if module.name in a.shapes)
        layer, found = per_task_layer(shape, module.problem.updates, ranks, torch.float32)
        norms = module.problem.updates.norms.tolist()
        results[module.name] = LayerResult(
            layer,
            dict(zip(module.tasks, found.coefficients, strict=True)),
            dict(zip(module.tasks, found.lost.tolist(), strict=True)),
            dict(zip(module.tasks, norms, strict=True)),
        )
    model = initialise(adapters[:1], Dimension(budget=1))
    tasks = [new_task(a, results, "init", model.dtype, None) for a in adapters]
    return model.with_layers({m: r.layer for m, r in results.items()}).with_tasks(tasks)


def _stored(
    model: ShareModel, adapters: Sequence[Adapter], *, files: bool = False
) -> dict[str, Any]:
    """Measured against the adapters; bytes of the tensors, and of all files of a store."""
    lost = measure(model, adapters)
    errors = []
    for adapter in adapters:
        norm = model.tasks[adapter.name].ledger.total_norm
        errors.append(math.hypot(*lost[adapter.name].values()) / norm)
    found = sizes(model)
    return {"mean": sum(errors) / len(errors), "worst": max(errors),
            "square": sum(e * e for e in errors), "bytes": found.basis + found.coefficients,
            "files": _files(model) if files else None}  # fmt: skip


def _files(model: ShareModel) -> int:
    """Bytes of all files of a store."""
    with tempfile.TemporaryDirectory() as folder:
        Share(model).save(Path(folder) / "model.share")
        return sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())


def _chosen(model: ShareModel) -> dict[str, Any]:
    values = [c for t in model.tasks.values() for c in t.coefficients.values()]
    private = sum(not c.is_shared for c in values)
    return {
        "k": [list(layer.k) for layer in model.layers.values()],
        "subspaces": max(len(layer.groups) or 1 for layer in model.layers.values()),
        "private": private / len(values),
    }


def merges(mixed: Sequence[Adapter], fraction: float, batches: int) -> dict[str, Any]:
    """A budget from the first batch on, and the others merged one after the other."""
    full = ITEM * sum(r * a.shapes[m].sides for a in mixed for m, r in a.ranks.items())
    budget, size = int(fraction * full), -(-len(mixed) // batches)
    model = initialise(mixed[:size], Dimension(budget=budget))
    steps = []
    for end in range(size, len(mixed) + 1, size):
        so_far = mixed[:end]
        if end > size:
            model = merge(model, mixed[end - size : end])
        modules = read_modules(so_far)
        own = [own_svd_options(m.problem.updates, ITEM) for m in modules]
        steps.append(
            {
                "adapters": end,
                OWN: _stored(_own_model(modules, own, so_far, budget), so_far),
                BUDGET: _stored(model, so_far),
                "at once": _stored(initialise(so_far, Dimension(budget=budget)), so_far),
                "ledger": max(t.ledger.bound for t in model.tasks.values()),
            }
        )
        print(f"merged {end}", flush=True)
    return {"budget_bytes": budget, "steps": steps}


def report(results: Mapping[str, Any]) -> str:
    """A table for each set, and one for the merges."""
    parts = [f"Budget: {results['fraction']:.1%} of the adapters' bytes. Mean / worst error.\n"]
    for label, counts in results["sets"].items():
        names = list(next(iter(counts.values()))["rows"])
        rows = [[count, *_cells(found, names)] for count, found in counts.items()]
        header = ["adapters", *names, "subspaces", "private", "own / --budget", "files"]
        parts.append(f"**{label}**\n\n{common.table(header, rows)}\n")
    merged = results["merges"]["steps"]
    rows = [
        [str(s["adapters"]), *(f"{s[n]['mean']:.3f}" for n in (OWN, BUDGET, "at once"))]
        for s in merged
    ]
    table = common.table(["adapters so far", OWN, BUDGET + ", merged", "all at once"], rows)
    parts.append(f"**The mix in batches, one budget from the first on**: mean error\n\n{table}")
    return "\n".join(parts)


def _cells(found: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    rows = found["rows"]
    gain = rows[OWN]["mean"] / rows[BUDGET]["mean"] if rows[BUDGET]["mean"] else math.inf
    both = rows[BUDGET]["files"], rows[OWN]["files"]
    return [
        *(f"{rows[n]['mean']:.3f} / {rows[n]['worst']:.3f}" for n in names),
        str(found["chosen"]["subspaces"]),
        f"{found['chosen']['private']:.0%}",
        f"{gain:.2f}x",
        f"{both[0] / both[1]:.2f}" if both[0] else "",
    ]


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Mean error against the number of adapters, a panel for each set."""
    from matplotlib import pyplot

    from sharespace.compare.figures import look, tidy

    figure, panels = pyplot.subplots(
        1, len(results["sets"]), figsize=(12, 4.2), layout="constrained", sharey=True
    )
    for axes, (label, counts) in zip(panels, results["sets"].items(), strict=True):
        for i, name in enumerate(next(iter(counts.values()))["rows"]):
            colour, mark = look(i)
            errors = [found["rows"][name]["mean"] for found in counts.values()]
            wide = 2.6 if name == BUDGET else 1.4
            axes.plot(
                [int(c) for c in counts], errors, color=colour, marker=mark, label=name,
                linewidth=wide,
            )  # fmt: skip
        axes.set(xscale="log", xlabel="adapters", title=textwrap.fill(label, 24))
        tidy(axes)
    panels[0].set_ylabel(f"mean relative error at {results['fraction']:.1%} of the bytes")
    panels[0].set_ylim(0, None)
    panels[-1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
