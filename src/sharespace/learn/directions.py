"""Choose the directions a new task works in by the gradient of its loss.

A task that trains one core between p frozen directions a side (``TaskMethod(form="core")``) trains
p^2 numbers, so all depends on which directions those are. At dW = 0 the loss falls fastest along
G = dL/dW, so they are taken from its leading singular vectors: p - phi inside the shared subspace
(of beta^T G alpha), and phi outside of it, which the merge then absorbs (method.md, step 3). Only
batches of the new task are needed, and nothing is trained. Starting LoRA from the gradient's
singular vectors: Wang et al., LoRA-GA, arXiv 2407.05000; a core between fixed frames: Balazy et
al., LoRA-XS, arXiv 2405.17604.

Never an n x d matrix: outside of the subspace G is seen through random sketches of a few columns
(Halko, Martinsson and Tropp 2011), of G first and then of G on what the first sketch found.

Which known task a new task should start from, told by a short look at its data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sharespace.extras import require
from sharespace.learn.prepare import as_output, is_grouped, seen
from sharespace.learn.settings import TrainingSettings
from sharespace.learn.training import Setup, fixed_statistics, trainer_for
from sharespace.share import Share

EXAMPLES = 256
"""Examples that the gradient is taken over."""

_SCALE_BATCHES = 4
"""Batches over which the size of the inputs is taken."""

_OVERSAMPLED = 8
"""Columns of a sketch beyond what is wanted."""

_EXAMPLES = 256
"""Examples that the gradient is taken over."""

_PROBE = 5
"""The head alone is trained for 1/5 of the steps before, so that gradients mean something."""

_NOTHING_KEPT: Mapping[str, Any] = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
}
"""A probe writes nothing, whatever the arguments of the training itself say."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The directions of one module: p a side, in the bases or outside of them."""

    left_known: Tensor
    """k_left x (p - phi), orthonormal: combinations of the left basis."""
    right_known: Tensor
    """k_right x (p - phi), orthonormal."""
    left_new: Tensor
    """n x phi, orthonormal, and orthogonal to the left basis."""
    right_new: Tensor
    """d x phi, orthonormal, and orthogonal to the right basis."""
    right_scale: Tensor
    """p: what the right directions are multiplied by, so that each sees inputs of unit size."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """What is seen of one module's gradient G, float64."""

    core: Tensor
    """beta^T G alpha, k_left x k_right."""
    left: Tensor
    """G times a d x s test matrix, n x s."""
    right: Tensor
    """G^T times an n x s test matrix, d x s."""


def informed_frames(
    model: Any, data: Any, training: TrainingSettings, setup: Setup | None = None
) -> dict[str, Frame]:
    """Frames for every layer of a new task in the form "core"; see ``place_frames``.

    Args:
        model: a ``PeftModel`` at dW = 0, heads as they should be when training starts.
        data: the new task's examples.
        training: its batch size and seed are used.
        setup: trainer and collator, which give the batches and the loss.
    """
    layers = _layers(model)
    silent = Setup(
        collator=setup.collator if setup else None,
        trainer=setup.trainer if setup else None,
        arguments=setup.arguments if setup else None,
        options=setup.options if setup else {},
    )
    generator = torch.Generator().manual_seed(training.seed)
    with trainer_for(model, data, training, silent) as trainer, fixed_statistics(model):
        count = max(EXAMPLES // training.per_device_train_batch_size, 1)
        batches = list(islice(trainer.get_train_dataloader(), count))
        tests = {m: _random_tests(layer, generator) for m, layer in layers.items()}
        first = _sketches(model, layers, tests, trainer, batches)
        better = {m: (_orthonormal(x.right), _orthonormal(x.left)) for m, x in first.items()}
        second = _sketches(model, layers, better, trainer, batches)
        frames = {m: _frame(layers[m], sketch) for m, sketch in second.items()}
        return _scaled(model, layers, frames, trainer, batches)


@torch.no_grad()
def place_frames(model: Any, frames: Mapping[str, Frame], adapter: str = "default") -> None:
    """Put the chosen directions in the place of an adapter's; its core stays as it is.

    Args:
        model: a ``PeftModel`` whose adapter has the form "core".
        frames: by module, of the adapter's p and phi.
    """
    layers = require("sharespace.tuner", "train").layers_of(model, adapter)
    for module, frame in frames.items():
        layer = layers[module]
        _fill(layer.sharespace_left_coefficients[adapter], frame.left_known)
        right = layer.sharespace_right_coefficients[adapter]
        _fill(right, frame.right_known)
        right.mul_(frame.right_scale.to(right))
        if adapter in layer.sharespace_left_temporary:
            layer.sharespace_left_temporary[adapter].copy_(frame.left_new)
            layer.sharespace_right_temporary[adapter].copy_(frame.right_new)


def _fill(coefficients: Tensor, known: Tensor) -> None:
    """The block of the basis; the block of the temporary directions is the identity already."""
    coefficients[: known.shape[0], : known.shape[1]] = known.to(coefficients)


def _layers(model: Any) -> dict[str, Any]:
    """Layers whose gradient can be seen: all but convolutions in groups."""
    layers = require("sharespace.tuner", "train").layers_of(model, "default")
    return {m: layer for m, layer in layers.items() if not is_grouped(layer.innermost)}


def _sizes(layer: Any) -> tuple[int, int]:
    """(known, new) directions a side of a layer's adapter."""
    new = layer.sharespace_left_temporary
    phi = new["default"].shape[1] if "default" in new else 0
    return layer.sharespace_core["default"].shape[0] - phi, phi


def _random_tests(layer: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Test matrices d x s and n x s."""
    columns = _sizes(layer)[1] + _OVERSAMPLED
    d, n = layer.right_basis.shape[0], layer.left_basis.shape[0]
    return (
        torch.randn(d, min(columns, d), generator=generator),
        torch.randn(n, min(columns, n), generator=generator),
    )


def _sketches(
    model: Any,
    layers: Mapping[str, Any],
    tests: Mapping[str, tuple[Tensor, Tensor]],
    trainer: Any,
    batches: list[Any],
) -> dict[str, Sketch]:
    """beta^T G alpha, G R and G^T L of every layer, summed over the batches.

    Each layer adds (beta C alpha^T + X R^T + L Y^T) x to its output, with C = X = Y = 0: their
    gradients are the answer.
    """
    model.eval()
    with _probes(layers, tests) as probes:
        wanted = [tensor for probe in probes.values() for tensor in probe]
        sums = [torch.zeros_like(tensor, dtype=torch.float64, device="cpu") for tensor in wanted]
        for batch in batches:
            loss = trainer.compute_loss(model, batch)
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient.double().cpu()
    return {m: Sketch(*sums[3 * i : 3 * i + 3]) for i, m in enumerate(probes)}


@contextmanager
def _probes(
    layers: Mapping[str, Any], tests: Mapping[str, tuple[Tensor, Tensor]]
) -> Iterator[dict[str, tuple[Tensor, Tensor, Tensor]]]:
    """Zero tensors (C, X, Y) through which the layers' outputs pass."""
    probes, handles = {}, []
    for module, layer in layers.items():
        device = layer.left_basis.device
        right, left = (test.float().to(device) for test in tests[module])
        (n, k_left), (d, k_right) = layer.left_basis.shape, layer.right_basis.shape
        sizes = ((k_left, k_right), (n, right.shape[1]), (d, left.shape[1]))
        probe = tuple(torch.zeros(*s, device=device, requires_grad=True) for s in sizes)
        probes[module] = (probe[0], probe[1], probe[2])
        handles.append(layer.register_forward_hook(_adds_probe(probes[module], right, left)))
    try:
        yield probes
    finally:
        for handle in handles:
            handle.remove()


def _adds_probe(probe: tuple[Tensor, Tensor, Tensor], right: Tensor, left: Tensor) -> Any:
    """A hook that adds (beta C alpha^T + X R^T + L Y^T) x to a layer's output."""
    core, grown_left, grown_right = probe

    def add(layer: Any, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        inner, x = layer.innermost, arguments[0].float()
        z = seen(inner, torch.cat([layer.right_basis.float(), right], dim=1).mT, x)
        k = layer.right_basis.shape[1]
        inside = functional.linear(z[..., :k], layer.left_basis.float() @ core)
        outside = functional.linear(z[..., k:], grown_left)
        across = functional.linear(seen(inner, grown_right.mT, x), left)
        return output + as_output(inner, inside + outside + across).to(output.dtype)

    return add


@torch.no_grad()
def _scaled(
    model: Any,
    layers: Mapping[str, Any],
    frames: Mapping[str, Frame],
    trainer: Any,
    batches: list[Any],
) -> dict[str, Frame]:
    """The frames with right directions that see inputs of unit root mean square.

    Adam moves every number of the core by the same step, so without this the few directions in
    which transformers' hidden states are large would take the step size for themselves.
    """
    sums = {m: torch.zeros(len(f.right_scale), dtype=torch.float64) for m, f in frames.items()}
    counts = dict.fromkeys(frames, 0)

    def watch(module: str) -> Any:
        frame, layer = frames[module], layers[module]
        basis = layer.right_basis.double()
        directions = torch.cat([basis @ frame.right_known.to(basis), frame.right_new.to(basis)], 1)
        seen_by = directions.float().mT.contiguous()

        def add(layer: Any, arguments: tuple[Any, ...]) -> None:
            z = seen(layer.innermost, seen_by, arguments[0].float()).flatten(0, -2)
            sums[module] += z.double().square().sum(0).cpu()
            counts[module] += len(z)

        return add

    handles = [layers[m].register_forward_pre_hook(watch(m)) for m in frames]
    try:
        for batch in batches[:_SCALE_BATCHES]:
            trainer.compute_loss(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {m: replace(f, right_scale=_inverse_size(sums[m], counts[m])) for m, f in frames.items()}


def _inverse_size(energy: Tensor, count: int) -> Tensor:
    """1 / root mean square of each coordinate; small ones as if they were a tenth of the largest,
    so that noise is not blown up."""
    size = (energy / max(count, 1)).sqrt()
    largest = float(size.max()) if len(size) else 0.0
    return 1 / size.clamp(min=largest / 10) if largest else torch.ones_like(size)


def _orthonormal(columns: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(columns)[0]
    return q


def _frame(layer: Any, sketch: Sketch) -> Frame:
    """The leading directions inside the subspace, and outside of it on each side."""
    known, new = _sizes(layer)
    u, _, vh = torch.linalg.svd(sketch.core, full_matrices=True)
    return Frame(
        u[:, :known],
        vh[:known].mT,
        _outside(layer.left_basis, sketch.left, new),
        _outside(layer.right_basis, sketch.right, new),
        torch.ones(known + new, dtype=torch.float64),
    )


def _outside(basis: Tensor, sketch: Tensor, count: int) -> Tensor:
    """Leading left singular vectors of a sketch without its part in the basis."""
    q = _orthonormal(basis.double().cpu())
    rest = sketch
    # Twice, as one pass leaves what rounding put back into the basis.
    for _ in range(2):
        rest = rest - q @ (q.mT @ rest)
    directions: Tensor = torch.linalg.svd(rest, full_matrices=False)[0][:, :count]
    directions = directions - q @ (q.mT @ directions)
    return _orthonormal(directions)


def nearest_task(
    model: Any, share: Share, data: Any, training: TrainingSettings, setup: Setup | None = None
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
    layers = require("sharespace.tuner", "train").layers_of(model, "default")
    component = model.peft_config["default"].component
    prefix = f"{component}." if component else ""
    for name, parameter in model.named_parameters():
        if ".sharespace_" in name:
            parameter.requires_grad_(False)
    with _probe(model, data, training, setup or Setup()) as trainer, fixed_statistics(model):
        if any(p.requires_grad for p in model.parameters()):
            trainer.train()
        gradients = core_gradients(model, layers, trainer, training.per_device_train_batch_size)
    by_module = {prefix + name: gradient for name, gradient in gradients.items()}
    descents = {name: _descent(share, name, by_module) for name in share.tasks}
    best = max(descents, key=lambda name: descents[name], default=None)
    return best if best is not None and descents[best] > 0 else "zero"


@contextmanager
def _probe(model: Any, data: Any, training: TrainingSettings, setup: Setup) -> Iterator[Any]:
    """A trainer of the caller's kind that evaluates, reports and writes nothing."""
    given = {name: value for name, value in training.arguments.items() if name != "output_dir"}
    short = replace(
        training,
        # Either of the two counts; a negative number of steps stays -1.
        max_steps=max(training.max_steps // _PROBE, 1) if training.max_steps > 0 else -1,
        num_train_epochs=training.num_train_epochs / _PROBE,
        early_stopping_patience=None,
        report_to=(),
        arguments={**given, **_NOTHING_KEPT},
    )
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
        if value.is_shared and module in gradients:
            core = value.core(share.model.layers[module].k)
            product += float((gradients[module] * core).sum())
            energy += float(core.square().sum())
    return -product / math.sqrt(energy) if energy else 0.0
