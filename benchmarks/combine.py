"""Seconds and error of combining tasks: in core space, by PEFT, and on dense matrices.

Every shape of module that a model has is combined alone: T tasks of rank r that a Share model of
k = T r directions holds exactly, with weights of both signs. The error is that of the weighed sum
of the updates, |found - sum| / |sum|, in float64; TIES is no sum and has none. PEFT's "svd" gets
the rank that holds the sum. What takes minutes on one module ("svd") or several GB (dense TIES) is
left out for modules of more numbers than ``--dense``. A model's time is **extrapolated** from its
modules, which do not depend on each other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.merge_cost import MODELS
from sharespace import Share
from sharespace.subspace.adapter import Adapter, LayerUpdate

SHAPES = ((768, 768), (1024, 1024), (4096, 4096), (11008, 4096), (4096, 11008))
DENSE = ("PEFT svd", "dense TIES")
"""Ways that work on n x d matrices."""
DENSITY = 0.2
MODEL = "7B (32 layers, 4096)"

Combine = Callable[[], object]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    before = common.wait_until_quiet(options.wait)
    clock = common.Clock.now()
    runs = [run for shape in options.shapes for run in _runs(shape, options)]
    results = {
        "environment": common.environment(options.seed),
        "load_before": before,
        "others_during": clock.others(),
        "sizes": {"tasks": options.tasks, "r": options.r, "dense": options.dense},
        "runs": runs,
    }
    common.write_results(options.out, results)
    print(report(results))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, "combine")
    parser.add_argument("--shapes", type=_shape, nargs="+", default=SHAPES, help="such as 64x32")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--dense", type=int, default=2**24, help="most numbers of a dense module")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for a quiet machine")
    return parser.parse_args(arguments)


def _shape(text: str) -> tuple[int, int]:
    n, d = text.split("x")
    return int(n), int(d)


def _runs(shape: tuple[int, int], options: argparse.Namespace) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(options.seed)
    n, d = shape
    updates = {
        f"t{i}": LayerUpdate(
            torch.randn(n, options.r, generator=generator) / n**0.5,
            torch.randn(options.r, d, generator=generator) / d**0.5,
        )
        for i in range(options.tasks)
    }
    weights = {name: (-1) ** i * (0.3 + 0.1 * i) for i, name in enumerate(updates)}
    left = torch.cat([w * updates[t].up.double() for t, w in weights.items()], dim=1)
    right = torch.cat([updates[t].down.double() for t in weights])
    ways = {**_share_ways(updates, weights), **_peft_ways(updates, weights, options.r)}
    runs = []
    for name, (combine, found) in ways.items():
        if name in DENSE and n * d > options.dense:
            continue
        slow = name == "PEFT svd"
        seconds = (
            common.seconds(combine) if slow else common.median_seconds(combine, options.repeats)
        )
        error = None if found is None else _error(found(), left, right)
        print(f"{n} x {d}, {name}: {seconds:.4f} s", flush=True)
        runs.append({"n": n, "d": d, "way": name, "seconds": seconds, "error": error})
    return runs


def _error(found: LayerUpdate, left: Tensor, right: Tensor) -> float:
    """|up down - left right| / |left right|, through triangles."""
    up = torch.cat([found.up.double(), -left], dim=1)
    down = torch.cat([found.down.double(), right])
    r_up, r_down = (torch.linalg.qr(x, mode="r")[1] for x in (up, down.mT))
    r_left, r_right = (torch.linalg.qr(x, mode="r")[1] for x in (left, right.mT))
    return float((r_up @ r_down.mT).norm() / (r_left @ r_right.mT).norm())


_Ways = dict[str, tuple[Combine, Callable[[], LayerUpdate] | None]]
"""Way -> what is timed, and its result as factors where it is a sum."""


def _share_ways(updates: Mapping[str, LayerUpdate], weights: Mapping[str, float]) -> _Ways:
    adapters = [Adapter.from_updates(name, {"m": update}) for name, update in updates.items()]
    share = Share.from_adapters(adapters, variance=1.0)

    def linear() -> Share:
        return share.combine(weights, name="both")

    return {
        "Share linear": (linear, lambda: linear().updates("both")["m"]),
        "Share ties": (
            lambda: share.combine(weights, name="both", method="ties", density=DENSITY),
            None,
        ),
    }


def _peft_ways(updates: Mapping[str, LayerUpdate], weights: Mapping[str, float], r: int) -> _Ways:
    import peft
    from peft.utils.merge_utils import ties

    n, d = next(iter(updates.values())).up.shape[0], next(iter(updates.values())).down.shape[1]
    base = nn.Sequential(nn.Linear(d, n, bias=False))
    config = peft.LoraConfig(r=r, lora_alpha=r, target_modules=["0"])
    model: Any = None
    for name, update in updates.items():
        if model is None:
            model = peft.get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        layer = model.base_model.model[0]
        layer.lora_A[name].weight.data = update.down.clone()
        layer.lora_B[name].weight.data = update.up.clone()
    names, numbers = list(weights), list(weights.values())

    def way(kind: str, **more: Any) -> tuple[Combine, Callable[[], LayerUpdate]]:
        def combine() -> None:
            if "both" in model.peft_config:
                model.delete_adapter("both")
            model.add_weighted_adapter(names, numbers, "both", combination_type=kind, **more)

        def found() -> LayerUpdate:
            layer = model.base_model.model[0]
            up = layer.lora_B["both"].weight.detach() * layer.scaling["both"]
            return LayerUpdate(up, layer.lora_A["both"].weight.detach())

        return combine, found

    def dense_ties() -> Tensor:
        deltas = [update.up @ update.down for update in updates.values()]
        merged: Tensor = ties(deltas, torch.tensor(numbers), DENSITY)
        return merged

    return {
        "PEFT cat": way("cat"),
        "PEFT linear": way("linear"),
        "PEFT svd": way("svd", svd_rank=min(r * len(names), n, d)),
        "dense TIES": (dense_ties, None),
    }


def report(results: dict[str, Any]) -> str:
    """Milliseconds and error of each way and shape; seconds of a model, extrapolated."""
    runs = {(run["n"], run["d"], run["way"]): run for run in results["runs"]}
    shapes = sorted({(n, d) for n, d, _ in runs}, key=lambda s: (s[0] + s[1], s))
    ways = list(dict.fromkeys(run["way"] for run in results["runs"]))
    layers, modules = MODELS[MODEL]
    sizes = results["sizes"]
    header = ["way", *[f"{n} x {d}, ms" for n, d in shapes], "error of the sum", f"{MODEL}, s"]
    rows = []
    for way in ways:
        times = [runs.get((n, d, way)) for n, d in shapes]
        errors = [t["error"] for t in times if t is not None and t["error"] is not None]
        whole = [(count, runs.get((n, d, way))) for (n, d), count in modules.items()]
        seconds = [count * run["seconds"] for count, run in whole if run is not None]
        total = f"{layers * sum(seconds):.2f}" if len(seconds) == len(whole) else "-"
        rows.append(
            [
                way,
                *["-" if t is None else f"{1e3 * t['seconds']:.1f}" for t in times],
                f"{max(errors):.0e}" if errors else "-",
                total,
            ]
        )
    return (
        f"{sizes['tasks']} tasks of rank {sizes['r']}, k = {sizes['tasks'] * sizes['r']}, "
        f"{results['others_during']:.0%} of the cores busy with other jobs\n\n"
        f"{common.table(header, rows)}"
    )


if __name__ == "__main__":
    main()
