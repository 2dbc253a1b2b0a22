"""Which known task a new task should start from, told by a short look at its data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sharespace.extras import require
from sharespace.learn.inputs import as_output, is_grouped, seen
from sharespace.learn.training import Setup, Training, fixed_statistics, trainer_for
from sharespace.share import Share
from sharespace.subspace.project import dense_cores
from sharespace.subspace.state import Private

_EXAMPLES = 256
"""Examples that the gradient is taken over."""
_PROBE = 5
"""The head alone is trained for 1/5 of the steps before, so that gradients mean something."""
_NOTHING_KEPT: Mapping[str, Any] = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": "none",
}
"""A probe writes nothing, whatever the arguments of the training itself say."""


def nearest_task(
    model: Any, share: Share, data: Any, training: Training, setup: Setup | None = None
) -> str:
    """The known task whose core, scaled to norm 1, lowers the new task's loss fastest.

    To first order dW = t C_i / |C_i| changes the loss by t <G, C_i> / |C_i|, where G is the
    gradient with respect to the core: the sum over modules of beta^T (dL/dW) alpha. The heads
    alone are trained for a few steps first.

    Args:
        model: a ``PeftModel`` with the new task at dW = 0, as ``prepare`` makes it; afterwards
            its heads are trained a little.

    Returns:
        The task's name, or ``"zero"`` where no known task lowers the loss.
    """
    layers = require("sharespace.nn", "train").layers_of(model, "default")
    component = model.peft_config["default"].component
    prefix = f"{component}." if component else ""
    for name, parameter in model.named_parameters():
        if ".sharespace_" in name:
            parameter.requires_grad_(False)
    with _probe(model, data, training, setup or Setup()) as trainer, fixed_statistics(model):
        if any(p.requires_grad for p in model.parameters()):
            trainer.train()
        gradients = core_gradients(model, layers, trainer, training.batch_size)
    by_module = {prefix + name: gradient for name, gradient in gradients.items()}
    descents = {name: _descent(share, name, by_module) for name in share.tasks}
    best = max(descents, key=lambda name: descents[name], default=None)
    return best if best is not None and descents[best] > 0 else "zero"


@contextmanager
def _probe(model: Any, data: Any, training: Training, setup: Setup) -> Iterator[Any]:
    """A trainer of the caller's kind that evaluates, reports and writes nothing."""
    given = {k: v for k, v in training.arguments.items() if k not in ("output_dir", "max_steps")}
    steps = max(training.steps // _PROBE, 1)
    short = replace(training, steps=steps, patience=None, arguments={**given, **_NOTHING_KEPT})
    silent = replace(setup, evaluation=None, metrics=None, callbacks=(), resume=None)
    with trainer_for(model, data, short, silent) as trainer:
        yield trainer


def core_gradients(
    model: nn.Module, layers: Mapping[str, Any], trainer: Any, batch_size: int
) -> dict[str, Tensor]:
    """Module -> beta^T (dL/dW) alpha, k_left x k_right float64, over the first examples.

    Each layer adds beta C alpha^T x to its output, with C = 0: the gradient of C is the answer, and
    nothing of the size of a weight is formed, so that quantised base models do, too. Convolutions
    in groups are left out.

    Args:
        layers: those of the PEFT method, by module.
        trainer: gives the batches, and the loss of each.
    """
    model.eval()
    chosen = {m: layer for m, layer in layers.items() if not is_grouped(layer.innermost)}
    found = {m: torch.zeros(*_k(layer), dtype=torch.float64) for m, layer in chosen.items()}
    batches = islice(trainer.get_train_dataloader(), max(_EXAMPLES // batch_size, 1))
    with _zero_cores(chosen) as cores:
        for batch in batches:
            loss = trainer.compute_loss(model, batch)
            # A layer that this batch does not reach has no gradient.
            gradients = torch.autograd.grad(loss, list(cores.values()), allow_unused=True)
            for module, gradient in zip(cores, gradients, strict=True):
                if gradient is not None:
                    found[module] += gradient.double().cpu()
    return found


@contextmanager
def _zero_cores(layers: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Cores C = 0 through which the layers' outputs pass."""
    cores = {
        m: torch.zeros(*_k(layer), device=layer.left_basis.device, requires_grad=True)
        for m, layer in layers.items()
    }
    handles = [layer.register_forward_hook(_adds_core(cores[m])) for m, layer in layers.items()]
    try:
        yield cores
    finally:
        for handle in handles:
            handle.remove()


def _adds_core(core: Tensor) -> Any:
    """A hook that adds beta C alpha^T x to a layer's output."""

    def add(layer: Any, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        inner, x = layer.innermost, arguments[0].float()
        z = seen(inner, layer.right_basis.float().mT, x)
        update = functional.linear(functional.linear(z, core), layer.left_basis.float())
        return output + as_output(inner, update).to(output.dtype)

    return add


def _k(layer: Any) -> tuple[int, int]:
    return layer.left_basis.shape[1], layer.right_basis.shape[1]


def _descent(share: Share, name: str, gradients: Mapping[str, Tensor]) -> float:
    """-<G, C> / |C| over all modules; 0 for a task without anything in the subspace."""
    product = energy = 0.0
    for module, value in share.task(name).coefficients.items():
        if not isinstance(value, Private) and module in gradients:
            core = dense_cores([value], share.model.layers[module])[0]
            product += float((gradients[module] * core).sum())
            energy += float(core.square().sum())
    return -product / math.sqrt(energy) if energy else 0.0
