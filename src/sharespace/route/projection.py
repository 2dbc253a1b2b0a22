"""The nearest task by energy: how much of the inputs of its modules a task's update takes up.

For a module with input x and task update dW = U S V^T (rank p), the energy is

    projection:  |V^T x|^2 / |x|^2                 the right factor's span
    arrow:       (v_1^T x)^2 / |x|^2               the first direction only
    update:      |S V^T x|^2 / (sigma_1^2 |x|^2)   how strongly dW acts on x, by its own size

all in [0, 1]. ``arrow`` is the score of Ostapenko et al., "Towards Modular LLMs by Building and
Reusing a Library of LoRAs", ICML 2024, squared; here one task is chosen for an input and not for
each token. No data of the task is needed: adapters that came without data can be routed to.

That is its only advantage: on 6 text tasks, LoRA on q and v of MiniLM's upper layers, it finds
the task of 53 to 55 % of the inputs (61 % at best after dividing by each task's own mean energy),
while ``Router`` finds that of 95 % (experiments/text_stream/results/router.json).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

from sharespace.errors import MismatchError, OptionError
from sharespace.route.features import (
    ModelInputs,
    base_model_only,
    base_modules,
    on_device,
    token_mask,
)
from sharespace.route.router import RoutedInputs, choose
from sharespace.subspace.adapter import LayerUpdate

EnergyDefinition = Literal["projection", "arrow", "update"]
"""One of the three energies of the module's docstring."""

Directions: TypeAlias = Mapping[str, Tensor]
"""Adapted module -> float32 [d, q]: the right singular vectors of a task's update, each weighed as
the definition says."""


def directions(
    updates: Mapping[str, LayerUpdate], definition: EnergyDefinition = "update"
) -> Directions:
    """A task's directions from its updates.

    Args:
        updates: adapted module -> update, from ``Share.updates(task)``.
        definition: which energy they are for.

    Returns:
        Adapted module -> directions; a module whose update is zero has no entry.

    Raises:
        OptionError: the definition is unknown.
    """
    if definition not in _WEIGHTS:
        raise OptionError(f"definition {definition!r}", "unknown", f"One of {sorted(_WEIGHTS)}")
    weighed = {m: _weighed(update, definition) for m, update in updates.items()}
    return {m: matrix for m, matrix in weighed.items() if matrix.shape[1]}


def _weighed(update: LayerUpdate, definition: EnergyDefinition) -> Tensor:
    """V W [d, q] of dW = U S V^T, where W weighs the columns as the definition says."""
    # dW = B A is n x d and never made: with B = Q R the right singular vectors of R A (r x d) are
    # those of dW, and so are the singular values.
    small = torch.linalg.qr(update.up.double())[1] @ update.down.double()
    _, s, vh = torch.linalg.svd(small, full_matrices=False)
    # Factors are stored in float32 (relative precision 6e-8): directions a million times weaker
    # than the first are rounding, and "projection" would count them in full.
    significant = s > s.max() * 1e-6 if s.numel() else s > 0
    weights = _WEIGHTS[definition](s[significant])
    weighed: Tensor = (vh[significant].mT * weights).float()
    return weighed[:, : int((weights > 0).sum())]


def _first_only(s: Tensor) -> Tensor:
    return (torch.arange(len(s)) == 0).to(s)


def _relative(s: Tensor) -> Tensor:
    return s / s[0] if len(s) else s


_WEIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "projection": torch.ones_like,
    "arrow": _first_only,
    "update": _relative,
}


def energy(
    model: Module, batches: Iterable[ModelInputs], tasks: Mapping[str, Directions]
) -> Tensor:
    """Energy of each input in the directions of each task, with the base model.

    The inputs of the adapted modules are caught by forward hooks; a PeftModel's adapters are off
    meanwhile. Energies are summed over the tokens that are not padding before they are divided,
    and averaged over the task's modules.

    Args:
        model: the base model, or a PeftModel around it, with modules of these names; only linear
            ones (and Conv1D) can be used.
        batches: keyword arguments of its forward.
        tasks: task -> directions.

    Returns:
        float64 [inputs, tasks] in [0, 1], on the CPU.

    Raises:
        OptionError: there is no batch or no task, or a task has no directions.
        MismatchError: a module is not in the model, is not run, or has inputs of another shape.
    """
    empty = [name for name, of_task in tasks.items() if not of_task]
    if empty or not tasks:
        what = f"task {empty[0]!r}" if empty else "tasks"
        raise OptionError(what, "no directions", "Leave out tasks whose update is zero")
    names = {module for of_task in tasks.values() for module in of_task}
    rows = []
    with base_model_only(model), _module_inputs(model, names) as inputs:
        for batch in batches:
            # So that a module which this batch does not run is missed, and not scored by the last.
            inputs.clear()
            arguments = on_device(model, batch)
            model(**arguments)
            rows.append(_energies(inputs, arguments, tasks))
    if not rows:
        raise OptionError("batches", "there is none", "Give at least one batch of inputs")
    return torch.cat(rows).clone()


@contextmanager
def _module_inputs(model: Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that holds each module's latest input, filled by forward hooks."""
    modules = base_modules(model)
    inputs: dict[str, Tensor] = {}
    missing = sorted(set(names) - set(modules))
    if missing:
        raise MismatchError(
            f"module {missing[0]!r}", "not in the model", "Give the model the tasks were made for"
        )

    def catch(name: str, _module: Module, args: tuple[Any, ...]) -> None:
        inputs[name] = args[0]

    handles = [modules[n].register_forward_pre_hook(partial(catch, n)) for n in names]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _energies(
    inputs: Mapping[str, Tensor], batch: ModelInputs, tasks: Mapping[str, Directions]
) -> Tensor:
    """float64 [inputs, tasks]: the mean over each task's modules."""
    by_task = [
        torch.stack([_fraction(inputs, m, d, batch) for m, d in of_task.items()]).mean(dim=0)
        for of_task in tasks.values()
    ]
    return torch.stack(by_task, dim=1).double().cpu()


def _fraction(
    inputs: Mapping[str, Tensor], module: str, weighed: Tensor, batch: ModelInputs
) -> Tensor:
    """float32 [inputs]: the fraction of one module's input energy that lies in the directions."""
    if module not in inputs:
        raise MismatchError(f"module {module!r}", "was not run", "Give a model that uses it")
    x = inputs[module].float()
    if x.ndim != 3 or x.shape[2] != len(weighed):
        why = f"inputs {tuple(x.shape)}, not [inputs, tokens, {len(weighed)}]"
        raise MismatchError(f"module {module!r}", why, "Only linear modules have such inputs")
    mask = token_mask(batch, x)
    inside = ((x @ weighed.to(x.device)).square().sum(dim=2) * mask).sum(dim=1)
    total = (x.square().sum(dim=2) * mask).sum(dim=1)
    # An input of zeros has no energy in any direction, and 0 / 0 would be NaN.
    return inside / total.clamp_min(torch.finfo(torch.float32).tiny)


def route_by_energy(
    energies: Tensor, tasks: Sequence[str], *, margin: float | None = None
) -> RoutedInputs:
    """The task with the most energy, if it leads the runner-up by the margin.

    Energies have no score of their own for "none of them", so the runner-up's takes its place.

    Args:
        energies: [inputs, tasks], from ``energy``.
        tasks: names of the columns.
        margin: an input goes to the base model where the best task leads the second by less; None:
            no input does. A single task leads by all its energy.

    Raises:
        OptionError: there are no tasks or no inputs.
        MismatchError: there are more or fewer tasks than columns.
    """
    if energies.ndim != 2 or energies.shape[1] != len(tasks):
        why = f"shape {tuple(energies.shape)} for {len(tasks)} tasks"
        raise MismatchError("energies", why, "Give one column for each task")
    alone = torch.zeros(len(energies), dtype=energies.dtype)
    second = energies.topk(2, dim=1).values[:, 1] if len(tasks) > 1 else alone
    return choose(tasks, energies, second, margin)
