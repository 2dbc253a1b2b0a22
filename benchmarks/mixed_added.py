"""What mixed batches add to the base model, in the adapted modules alone.

Whole passes (``mixed_batch``) differ by less than their noise where few modules are adapted. Here a
clock runs in each adapted module: from its call to its return, less its base product. That is the
hook of MixedTasks, and for PEFT's ``adapter_names`` what a LoRA layer does besides calling its base
layer. What additions cost later, by what they push out of the caches, is not in it. CPU time of one
thread; contenders take turns, pass by pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks import common
from benchmarks.mixed_batch import NAMES, OURS, TARGETS, Contenders, median_ratio, parsed


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments, "mixed_added", __doc__)
    torch.set_num_threads(1)
    clock = common.Clock.now()
    results: dict[str, Any] = {
        "environment": common.environment(options.seed),
        "sizes": {n: getattr(options, n) for n in ("k", "p", "rows", "length", "rounds")},
        "lines": [],
    }
    for shape in options.shapes:
        for targets in [t for t in TARGETS[shape] if t in options.targets]:
            for phase in options.phases:
                for count in options.tasks:
                    found = measure(shape, targets, phase, count, options)
                    print(found, flush=True)
                    results["lines"].append(found)
                    common.write_results(options.out, results | {"others_during": clock.others()})
    print(report(results | {"others_during": clock.others()}))


def measure(shape: str, targets: str, phase: str, count: int, options: Any) -> dict[str, Any]:
    """Median seconds of one pass."""
    length = options.length if phase == "prompt" else 1
    contenders = Contenders(shape, TARGETS[shape][targets], count, length, options)
    modules = {OURS: _hooked(contenders), NAMES: _lora(contenders)}
    added: dict[str, list[float]] = {OURS: [], NAMES: []}
    products: list[float] = []
    with torch.no_grad():
        for turn in range(options.rounds + 1):
            for name in (OURS, NAMES) if turn % 2 else (NAMES, OURS):
                found = seconds(contenders.calls[name], modules[name])
                if turn:
                    added[name].append(found[1])
                    products.append(found[0])
    ratio, error = median_ratio(added[NAMES], added[OURS])
    return {
        "shape": shape,
        "targets": targets,
        "phase": phase,
        "tasks": count,
        "products": statistics.median(products),
        OURS: statistics.median(added[OURS]),
        NAMES: statistics.median(added[NAMES]),
        "by_ours": ratio,
        "by_ours_error": error,
    }


def _hooked(contenders: Contenders) -> list[tuple[nn.Module, nn.Module]]:
    model = contenders.mixed.model
    found = [model.get_submodule(name) for name in contenders.mixed.share.model.layers]
    return [(module, module) for module in found]


def _lora(contenders: Contenders) -> list[tuple[nn.Module, nn.Module]]:
    from peft.tuners.lora import LoraLayer

    layers = [m for m in contenders.peft.modules() if isinstance(m, LoraLayer)]
    return [(layer, layer.base_layer) for layer in layers]


def seconds(
    call: Callable[[], object], modules: Sequence[tuple[nn.Module, nn.Module]]
) -> tuple[float, float]:
    """Of the base products, and of all else in the modules, in one call."""
    total, product = [0.0], [0.0]
    with _timed(modules, total, product):
        call()
    return product[0], total[0] - product[0]


@contextmanager
def _timed(
    modules: Sequence[tuple[nn.Module, nn.Module]], total: list[float], product: list[float]
) -> Iterator[None]:
    handles: list[Any] = []

    def begin(*_: object) -> None:
        total[0] -= time.thread_time()

    def end(*_: object) -> None:
        total[0] += time.thread_time()

    def timed(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            result = forward(*args, **kwargs)
            product[0] += time.thread_time() - start
            return result

        return run

    for outer, inner in modules:
        handles += [outer.register_forward_pre_hook(begin), outer.register_forward_hook(end)]
        inner.forward = timed(inner.forward)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for _, inner in modules:
            del inner.forward


def report(results: dict[str, Any]) -> str:
    """One line a measurement, in milliseconds a pass."""
    sizes = results["sizes"]
    header = ["shape", "targets", "phase", "tasks", "base products, ms", f"{OURS}, ms"]
    header += [f"{NAMES}, ms", f"{NAMES} by {OURS}"]
    rows = [
        [one["shape"], one["targets"], one["phase"], str(one["tasks"])]
        + [f"{1e3 * one[n]:.2f}" for n in ("products", OURS, NAMES)]
        + [f"{one['by_ours']:.2f}x ± {one['by_ours_error']:.2f}"]
        for one in results["lines"]
    ]
    said = (
        f"{sizes['rows']} rows; {sizes['length']} tokens a row in a prompt, one in a step; medians "
        f"of {sizes['rounds']} rounds; other jobs had {results['others_during']:.0%} of the cores."
    )
    return f"{said}\n\n{common.table(header, rows)}"


if __name__ == "__main__":
    main()
