"""Two Share models of one base as one, in core space."""

from __future__ import annotations

from dataclasses import replace

import torch

from sharespace.linalg.core_merge import framed_coefficients
from sharespace.linalg.precision import common_dtype
from sharespace.subspace.compatible import common_base, common_shapes
from sharespace.subspace.layers import LayerResult
from sharespace.subspace.merge import empty_layer, merge_under_budget, with_cap, with_results
from sharespace.subspace.merge_layer import Side, merge_layer
from sharespace.subspace.reconstruct import as_adapter, factor_pair
from sharespace.subspace.state import (
    Core,
    Factors,
    Private,
    ShareModel,
    Task,
    check_new_names,
)


def union(first: ShareModel, second: ShareModel, *, cap: int | None = None) -> ShareModel:
    """The tasks of both in one model, with the settings and caps of the first.

    Exact while the caps have room; tasks keep their weights, ledgers and all they carry.

    Args:
        cap: a new largest k for every layer; None: the first model's caps.

    Raises:
        TaskExistsError: a task is in both (rename it in one of them first).
        MismatchError: they are of different base models.
        OptionError: a cap together with a byte budget.
    """
    check_new_names(second.tasks, first.tasks)
    newcomers = [(as_adapter(second, t), t) for t in second.tasks.values()]
    adapters = [a for a, _ in newcomers]
    first = replace(first, base=common_base(adapters, first.base))
    common_shapes(adapters, first.shapes)
    first = widened(with_cap(first, cap), common_dtype(first.dtype, second.dtype))
    second = widened(second, first.dtype)
    if first.settings.budget is not None:
        ledgers = {t.name: t.ledger for _, t in newcomers}
        return merge_under_budget(first, adapters, "union", ledgers)
    room = {
        m: empty_layer(first, layer.shape)
        for m, layer in second.layers.items()
        if m not in first.layers
    }
    first = replace(first, layers={**first.layers, **room})
    results = {m: _merge_module(first, second, m) for m in second.layers}
    return with_results(first, results, newcomers, "union")


def widened(model: ShareModel, dtype: torch.dtype) -> ShareModel:
    """The same numbers in a dtype that holds them all exactly."""
    if dtype == model.dtype:
        return model
    layers = {
        m: replace(x, left_basis=x.left_basis.to(dtype), right_basis=x.right_basis.to(dtype))
        for m, x in model.layers.items()
    }
    tasks = [_widened_task(t, dtype) for t in model.tasks.values()]
    return replace(model, dtype=dtype, layers=layers).with_tasks(tasks)


def _widened_task(task: Task, dtype: torch.dtype) -> Task:
    def widen(value: Factors | Core | Private) -> Factors | Core | Private:
        if isinstance(value, Core):
            return replace(value, matrix=value.matrix.to(dtype))
        return replace(value, left=value.left.to(dtype), right=value.right.to(dtype))

    return replace(task, coefficients={m: widen(c) for m, c in task.coefficients.items()})


def _merge_module(first: ShareModel, second: ShareModel, module: str) -> LayerResult:
    """The second model's tasks at one layer; private updates come along as they are."""
    layer = second.layers[module]
    tasks = [t for t in second.tasks.values() if module in t.coefficients]
    private = {t.name: c for t in tasks if isinstance(c := t.coefficients[module], Private)}
    shared = [(t, c) for t in tasks if isinstance(c := t.coefficients[module], Factors | Core)]
    norms = {t.name: t.ledger.norm(module) for t in tasks}
    if not shared:
        return LayerResult(first.layers[module], private, dict.fromkeys(private, 0.0), norms)
    side = Side(
        tuple(t.name for t, _ in shared),
        framed_coefficients(
            layer.left_basis, layer.right_basis, [factor_pair(c) for _, c in shared]
        ),
        torch.tensor([norms[t.name] for t, _ in shared], dtype=torch.float64),
    )
    result = merge_layer(first, module, side)
    return LayerResult(
        result.layer,
        {**result.coefficients, **private},
        {**result.lost, **dict.fromkeys(private, 0.0)},
        norms,
    )
