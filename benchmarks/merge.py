"""Time to merge ONE adapter into a Share model of 10, 100, 1000 tasks, below the cap and at it.

The models are made of random orthonormal bases and random coefficients: only their sizes matter
here. Below the cap the bases grow by what the newcomer needs and the known tasks are padded; at the
cap every task is re-expressed, through k x p coefficients alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from sharespace import Share
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate, ModuleShape
from sharespace.subspace.coefficients import Factors
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import BuildSettings, Ledger, ShareModel, Task

MODULES = 4


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    before = common.wait_until_quiet(options.wait)
    clock = common.Clock.now()
    points = [
        _point(d, tasks, at_cap, options)
        for d in options.d
        for at_cap in (False, True)
        for tasks in options.tasks
    ]
    results = {
        "environment": common.environment(options.seed),
        "load_before": before,
        "others_during": clock.others(),
        "sizes": {"k": options.k, "p": options.p, "modules": MODULES, "r": options.p},
        "points": points,
    }
    common.write_results(options.out, results)
    print(report(results))
    if options.figure:
        draw(results, options.out.with_suffix(".png"))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "merge")
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--d", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--p", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for a quiet machine")
    parser.add_argument("--no-figure", dest="figure", action="store_false")
    return parser.parse_args(arguments)


def _point(d: int, tasks: int, at_cap: bool, options: argparse.Namespace) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(options.seed)
    share = Share(model(d, tasks, options.k, options.p, generator, at_cap=at_cap))
    newcomer = _adapter(d, options.p, generator)
    median = common.median_seconds(lambda: share.merge(newcomer), options.repeats)
    print(
        f"d={d}, {tasks} tasks, {'at' if at_cap else 'below'} the cap: {median:.4f} s", flush=True
    )
    return {"d": d, "tasks": tasks, "at_cap": at_cap, "seconds": median}


def model(
    d: int, tasks: int, k: int, p: int, generator: torch.Generator, *, at_cap: bool
) -> ShareModel:
    """A Share model of random tasks; at the cap, or without one."""
    cap = k if at_cap else None
    layers = {name: _layer(d, k, cap, generator) for name in _modules()}
    members = [_task(f"task{i}", k, p, generator) for i in range(tasks)]
    settings = BuildSettings(cap=cap)
    return ShareModel(BaseModel(), settings, torch.float32, layers, {t.name: t for t in members})


def _modules() -> list[str]:
    return [f"model.layers.{i}.self_attn.{m}_proj" for i in range(MODULES // 2) for m in "qv"]


def _layer(d: int, k: int, cap: int | None, generator: torch.Generator) -> LayerSubspace:
    left, right = torch.linalg.qr(torch.randn(2, d, k, generator=generator))[0]
    limit = None if cap is None else (cap, cap)
    return LayerSubspace(ModuleShape(d, d), left, right, cap=limit)


def _task(name: str, k: int, p: int, generator: torch.Generator) -> Task:
    def factor() -> Tensor:
        return torch.randn(k, p, generator=generator)

    coefficients = {m: Factors(factor(), factor()) for m in _modules()}
    norms = [float((c.left @ c.right.mT).norm()) for c in coefficients.values()]
    ledger = Ledger(
        tuple(coefficients),
        torch.tensor(norms, dtype=torch.float64),
        torch.zeros(len(norms), 0, dtype=torch.float64),
        (),
    )
    return Task(name, coefficients, ledger)


def _adapter(d: int, r: int, generator: torch.Generator) -> Adapter:
    updates = {
        m: LayerUpdate(
            torch.randn(d, r, generator=generator), torch.randn(r, d, generator=generator)
        )
        for m in _modules()
    }
    return replace(Adapter.from_updates("new", updates), base=BaseModel())


def report(results: dict[str, Any]) -> str:
    """A table, and what a task more costs."""
    points = results["points"]
    tasks = sorted({p["tasks"] for p in points})
    rows = []
    for d, at_cap in sorted({(p["d"], p["at_cap"]) for p in points}):
        line = _line(points, d, at_cap)
        fixed, each = _fit(line)
        rows.append(
            [str(d), "at the cap" if at_cap else "below the cap"]
            + [f"{1e3 * p['seconds']:.1f}" for p in line]
            + [f"{1e3 * fixed:.1f}", f"{1e3 * each:.3f}"]
        )
    header = ["d", "merge", *[f"{t} tasks, ms" for t in tasks], "fixed, ms", "per task, ms"]
    return common.table(header, rows)


def _line(points: list[dict[str, Any]], d: int, at_cap: bool) -> list[dict[str, Any]]:
    found = [p for p in points if p["d"] == d and p["at_cap"] == at_cap]
    return sorted(found, key=lambda p: int(p["tasks"]))


def _fit(line: list[dict[str, Any]]) -> tuple[float, float]:
    """seconds = fixed + each * tasks, by least squares of the relative errors."""
    tasks = torch.tensor([float(p["tasks"]) for p in line], dtype=torch.float64)
    times = torch.tensor([p["seconds"] for p in line], dtype=torch.float64)
    design = torch.stack([torch.ones_like(tasks), tasks], dim=1) / times[:, None]
    fixed, each = torch.linalg.lstsq(design, torch.ones(len(line), 1).double())[0][:, 0].tolist()
    return fixed, each


def draw(results: dict[str, Any], path: Path) -> None:
    """Log-log: measured times, and the line fixed + each * tasks through them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    points = results["points"]
    combinations = sorted({(p["d"], p["at_cap"]) for p in points})
    for number, (d, at_cap) in enumerate(combinations):
        line = _line(points, d, at_cap)
        fixed, each = _fit(line)
        tasks = [p["tasks"] for p in line]
        place = "at" if at_cap else "below"
        label = f"d={d}, {place} the cap: {1e3 * fixed:.0f} ms + {1e3 * each:.2f} ms per task"
        style = {"color": f"C{number}", "marker": "o" if at_cap else "s"}
        axes.loglog(tasks, [p["seconds"] for p in line], linestyle="none", label=label, **style)
        fine = [tasks[0] * (tasks[-1] / tasks[0]) ** (i / 50) for i in range(51)]
        axes.loglog(fine, [fixed + each * t for t in fine], color=f"C{number}", linewidth=1)
    sizes = results["sizes"]
    axes.set_xlabel("tasks in the model")
    axes.set_ylabel("seconds to merge one adapter")
    axes.set_title(f"{sizes['modules']} modules, k = {sizes['k']}, p = r = {sizes['p']}")
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    print(f"written: {path.name}")


if __name__ == "__main__":
    main()
