"""Seconds to merge a task that was trained in the subspace, from MiniLM's shapes to a 7B model's.

Every shape of module that a model has is merged alone, at the cap k, with ``Share.merge``: one
newcomer of pseudo-rank p with phi temporary directions a side, into a model of T tasks. A model's
time is the sum over its modules, **extrapolated** from the measured shapes, not measured; modules
do not depend on each other.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from sharespace import Share
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate, ModuleShape
from sharespace.subspace.coefficients import Factors
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import BuildSettings, Ledger, ShareModel, Task

MODULE = "m"
MODELS: dict[str, tuple[int, dict[tuple[int, int], int]]] = {
    "MiniLM (6 layers, 384)": (6, {(384, 384): 4, (1536, 384): 1, (384, 1536): 1}),
    "BERT base (12 layers, 768)": (12, {(768, 768): 4, (3072, 768): 1, (768, 3072): 1}),
    "BERT large (24 layers, 1024)": (24, {(1024, 1024): 4, (4096, 1024): 1, (1024, 4096): 1}),
    "1.1B (22 layers, 2048)": (22, {(2048, 2048): 2, (256, 2048): 2, (5632, 2048): 2,
                                    (2048, 5632): 1}),
    "7B (32 layers, 4096)": (32, {(4096, 4096): 4, (11008, 4096): 2, (4096, 11008): 1}),
}  # fmt: skip
"""Name -> layers, and per layer: (n, d) of a linear module -> how many of it."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    before = common.wait_until_quiet(options.wait)
    clock = common.Clock.now()
    chosen = list(MODELS)[: options.models]
    shapes = sorted({shape for name in chosen for shape in MODELS[name][1]})
    modules = [
        {"n": n, "d": d, "tasks": tasks, "seconds": _seconds(n, d, tasks, options)}
        for n, d in shapes
        for tasks in options.tasks
    ]
    results = {
        "environment": common.environment(options.seed),
        "load_before": before,
        "others_during": clock.others(),
        "sizes": {"k": options.k, "p": options.p, "phi": options.phi},
        "models": chosen,
        "modules": modules,
    }
    common.write_results(options.out, results)
    print(report(results))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "merge_cost")
    parser.add_argument("--tasks", type=int, nargs="+", default=[6, 100])
    parser.add_argument("--models", type=int, default=len(MODELS), help="only the first so many")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--p", type=int, default=8)
    parser.add_argument("--phi", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for a quiet machine")
    return parser.parse_args(arguments)


def _seconds(n: int, d: int, tasks: int, options: argparse.Namespace) -> float:
    generator = torch.Generator().manual_seed(options.seed)
    share = Share(model(n, d, tasks, options, generator))
    newcomer = _newcomer(share.model.layers[MODULE], options, generator)
    found = common.median_seconds(lambda: share.merge(newcomer), options.repeats)
    print(f"{n} x {d}, {tasks} tasks: {found:.4f} s", flush=True)
    return found


def model(
    n: int, d: int, tasks: int, options: argparse.Namespace, generator: torch.Generator
) -> ShareModel:
    """A Share model of one module at its cap, with random tasks."""
    k, p = options.k, options.p
    left, right = (torch.linalg.qr(_draw(generator, side, k))[0] for side in (n, d))
    layer = LayerSubspace(ModuleShape(n, d), left, right, cap=(k, k))
    members = {}
    for i in range(tasks):
        value = Factors(_draw(generator, k, p), _draw(generator, k, p))
        norm = torch.tensor([float((value.left @ value.right.mT).norm())]).double()
        ledger = Ledger((MODULE,), norm, torch.zeros(1, 0).double(), ())
        members[f"task{i}"] = Task(f"task{i}", {MODULE: value}, ledger)
    settings = BuildSettings(cap=k)
    return ShareModel(BaseModel(), settings, torch.float32, {MODULE: layer}, members)


def _newcomer(
    layer: LayerSubspace, options: argparse.Namespace, generator: torch.Generator
) -> Adapter:
    """What training leaves: factors in the subspace and phi directions of its own."""
    factors = []
    for basis in (layer.left_basis, layer.right_basis):
        new = _draw(generator, len(basis), options.phi) / len(basis) ** 0.5
        inside = _draw(generator, basis.shape[1] + options.phi, options.p)
        factors.append(torch.cat([basis, new], dim=1) @ inside)
    update = LayerUpdate(factors[0], factors[1].mT.contiguous())
    return replace(Adapter.from_updates("new", {MODULE: update}), base=BaseModel())


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def report(results: dict[str, Any]) -> str:
    """Milliseconds of each shape of module; seconds of whole models, extrapolated."""
    tasks = sorted({m["tasks"] for m in results["modules"]})
    found = {(m["n"], m["d"], m["tasks"]): m["seconds"] for m in results["modules"]}
    shapes = sorted({(n, d) for n, d, _ in found}, key=lambda s: (s[0] + s[1], s))
    header = ["module, n x d", *[f"{t} tasks, ms" for t in tasks]]
    rows = [[f"{n} x {d}", *[f"{1e3 * found[n, d, t]:.1f}" for t in tasks]] for n, d in shapes]
    whole = ["model, every linear module", "modules", *[f"{t} tasks, s" for t in tasks]]
    sizes = results["sizes"]
    return (
        f"k = {sizes['k']}, p = {sizes['p']}, phi = {sizes['phi']}, at the cap\n\n"
        f"{common.table(header, rows)}\n\nExtrapolated from these, module by module:\n\n"
        f"{common.table(whole, [_model_row(name, found, tasks) for name in results['models']])}"
    )


def _model_row(name: str, found: dict[tuple[int, int, int], float], tasks: list[int]) -> list[str]:
    layers, shapes = MODELS[name]
    totals = [layers * sum(c * found[n, d, t] for (n, d), c in shapes.items()) for t in tasks]
    return [name, str(layers * sum(shapes.values())), *[f"{total:.2f}" for total in totals]]


if __name__ == "__main__":
    main()
