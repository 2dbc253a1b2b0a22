"""Which known task a new task should start from, told by one pass over its data."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sharespace.extras import require
from sharespace.learn.training import Setup, Training, fit
from sharespace.share import Share
from sharespace.subspace.project import dense_cores
from sharespace.subspace.state import Private

_EXAMPLES = 256
"""Examples that the gradient is taken over."""
_PROBE = 5
"""The head alone is trained for 1/5 of the steps before, so that gradients mean something."""


def nearest_task(
    model: nn.Module,
    share: Share,
    data: Any,
    training: Training,
    heads: Sequence[str],
    setup: Setup | None = None,
) -> str:
    """The known task whose core, scaled to norm 1, lowers the new task's loss fastest.

    To first order dW = t C_i / |C_i| changes the loss by t <G, C_i> / |C_i|, where G is the
    gradient with respect to the core: the sum over modules of beta^T (dL/dW) alpha. A head is
    trained for a few steps first, on a copy of the model.

    Returns:
        The task's name, or ``"zero"`` where no known task lowers the loss.
    """
    setup = setup or Setup()
    probe = copy.deepcopy(model).requires_grad_(False)
    for name in heads:
        probe.get_submodule(name).requires_grad_(True)
    steps = max(training.steps // _PROBE, 1)
    short = replace(training, steps=steps, patience=None)
    fit(probe, data, short, replace(setup, evaluation=None, metrics=None, callbacks=()))
    gradients = core_gradients(probe, share, data, setup.collator, training.batch_size)
    descents = {name: _descent(share, name, gradients) for name in share.tasks}
    best = max(descents, key=lambda name: descents[name], default=None)
    return best if best is not None and descents[best] > 0 else "zero"


def core_gradients(
    model: nn.Module, share: Share, data: Any, collator: Any, batch_size: int
) -> dict[str, Tensor]:
    """Module -> beta^T (dL/dW) alpha, k_left x k_right float64, over the first examples.

    Found from dW = beta C alpha^T at C = 0: a layer of the PEFT method with E = I, F = 0 would
    have no gradient in E, so the weight's own gradient is projected.
    """
    transformers = require("transformers", "train")
    collate = collator or transformers.default_data_collator
    device = next(model.parameters()).device
    found = {
        m: torch.zeros(*layer.k, dtype=torch.float64) for m, layer in share.model.layers.items()
    }
    count = min(_EXAMPLES, len(data))
    with _weights_require_gradients(model, list(found)) as weights:
        for begin in range(0, count, batch_size):
            batch = collate([data[i] for i in range(begin, min(begin + batch_size, count))])
            loss = model(**{k: v.to(device) for k, v in batch.items()})["loss"]
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for module, gradient in zip(weights, gradients, strict=True):
                found[module] += _projected(model, share, module, gradient)
    return found


@contextmanager
def _weights_require_gradients(
    model: nn.Module, modules: Sequence[str]
) -> Iterator[dict[str, nn.Parameter]]:
    weights = {m: model.get_parameter(f"{m}.weight") for m in modules}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        yield weights
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)


def _projected(model: nn.Module, share: Share, module: str, gradient: Tensor) -> Tensor:
    layer = share.model.layers[module]
    is_transposed = require("sharespace.nn", "train").is_transposed
    matrix = gradient.mT if is_transposed(model.get_submodule(module)) else gradient.flatten(1)
    wide = matrix.double().cpu()
    core: Tensor = layer.left_basis.double().mT @ wide @ layer.right_basis.double()
    return core


def _descent(share: Share, name: str, gradients: dict[str, Tensor]) -> float:
    """-<G, C> / |C| over all modules; 0 for a task without anything in the subspace."""
    product = energy = 0.0
    for module, value in share.task(name).coefficients.items():
        if not isinstance(value, Private):
            core = dense_cores([value], share.model.layers[module])[0]
            product += float((gradients[module] * core).sum())
            energy += float(core.square().sum())
    return -product / math.sqrt(energy) if energy else 0.0
