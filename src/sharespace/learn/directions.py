"""What the gradient of a new task's loss says before anything is trained.

A task that trains one core between p frozen directions a side (``TaskMethod(form="core")``) trains
p^2 numbers, so all depends on which directions those are. At dW = 0 the loss falls fastest along
G = dL/dW, so they are taken from its leading singular vectors: p - phi inside the shared subspace
(of beta^T G alpha), and phi outside of it, which the merge then absorbs (docs/method.md, "Step 3:
merge"). Only batches of the new task are needed. Starting LoRA from the gradient's singular
vectors: Wang et al., LoRA-GA, arXiv 2407.05000; a core between fixed frames: Balazy et al.,
LoRA-XS, arXiv 2405.17604.

G, an n x d matrix, is never formed: outside of the subspace it is seen through random sketches of a
few columns (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithm 4.4 with one power step),
of G first and then of G on what the first sketch found.

beta^T G alpha also tells which known tasks a new one may start from (``descents``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from sharespace.errors import OptionError
from sharespace.learn.prepare import as_output, coordinates, is_grouped
from sharespace.learn.settings import TrainingSettings
from sharespace.learn.training import Setup, fixed_statistics, trainer_for
from sharespace.protocols import Batch, PeftModel, TrainerLike
from sharespace.share import Share

if TYPE_CHECKING:
    from sharespace.tuner import SubspaceLayer

_EXAMPLES = 256
"""Examples that a gradient is taken over."""

_SCALE_BATCHES = 4
"""Batches over which the size of the inputs is taken."""

_OVERSAMPLED = 8
"""Columns of a sketch beyond what is wanted; Halko et al. recommend 5 to 10."""

_NOTHING_KEPT: Mapping[str, object] = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
}
"""A probe writes nothing, whatever the arguments of the training itself say."""

LossOfBatch = Callable[[Batch], Tensor]
"""A batch -> its loss, a scalar that gradients flow from."""

TestMatrices = tuple[Tensor, Tensor]
"""What a gradient is multiplied with: d x s from the right, n x s from the left."""


@dataclass(frozen=True, eq=False)
class TaskDirections:
    """The directions of one module: p a side, in the bases or outside of them, float64."""

    left_known: Tensor
    """k_left x (p - phi_left), orthonormal: combinations of the left basis."""
    right_known: Tensor
    """k_right x (p - phi_right), orthonormal."""
    left_new: Tensor
    """n x phi_left, orthonormal, and orthogonal to the left basis."""
    right_new: Tensor
    """d x phi_right, orthonormal, and orthogonal to the right basis."""
    right_scale: Tensor
    """p: what the right directions are multiplied by, so that each sees inputs of unit size."""


@dataclass(frozen=True, eq=False)
class GradientSketch:
    """What is seen of one module's gradient G, float64."""

    core: Tensor
    """beta^T G alpha, k_left x k_right."""
    left: Tensor
    """G times a d x s test matrix, n x s."""
    right: Tensor
    """G^T times an n x s test matrix, d x s."""


def choose_directions(
    model: PeftModel, batches: Iterable[Batch], *, adapter: str = "default", seed: int = 0
) -> None:
    """Put the directions of a new task's core where the gradient of its loss is largest.

    For models made with ``ShareConfig(form="core")`` and trained by any loop, once before the first
    step (heads that are new should be trained a little first). The core is 0 until then, so that
    the output does not change. Each batch is passed through the model twice with a backward pass,
    and nothing is trained; 256 examples are enough. In a distributed training every process calls
    it with its own batches, and all of them place the same directions.

    Args:
        model: a ``PeftModel`` made with ``ShareConfig``, wrapped or not.
        batches: keyword arguments of the model, labels included, on its device.
        adapter: PEFT's name for the adapter.
        seed: of the random sketches.

    Raises:
        OptionError: there are no batches, the model returns no loss, or the adapter has no core.
        MismatchError: the model has no such adapter.
    """

    def loss_of(batch: Batch) -> Tensor:
        output = model(**batch)
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if not isinstance(loss, Tensor):
            raise OptionError("batches", "the model returns no loss for them", "Give labels, too")
        return loss

    batches = list(batches)
    if not batches:
        raise OptionError("batches", "there are none", "Give about 256 examples of the task")
    for module, layer in _visible_layers(model, adapter).items():
        if adapter not in layer.sharespace_core:
            why = "it trains the directions of its factors itself"
            raise OptionError(f"adapter {adapter!r}", why, "Give ShareConfig(form='core')")
        if layer.sharespace_core[adapter].detach().any():
            raise OptionError(
                f"adapter {adapter!r}, module {module!r}",
                "its core is not 0 any more, and means nothing between other directions",
                "Choose directions before the first step",
            )
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    try:
        with fixed_statistics(model):
            directions = _directions(model, adapter, batches, loss_of, generator)
    finally:
        model.train(training)
    place_directions(model, directions, adapter)


def gradient_directions(
    model: PeftModel, data: object, training: TrainingSettings, setup: Setup
) -> dict[str, TaskDirections]:
    """Directions for every layer of a new task in the form "core"; see ``place_directions``.

    Args:
        model: with C = 0, at what it starts from; heads as they should be when training starts.
        data: the new task's examples.
        training: its batch size and seed are used.
        setup: trainer and collator, which give the batches and the loss.
    """
    generator = torch.Generator().manual_seed(training.seed)
    with probe_trainer(model, data, training, setup) as trainer, fixed_statistics(model):
        batches = _first_batches(trainer, training)
        loss_of = partial(trainer.compute_loss, model)
        return _directions(model, "default", batches, loss_of, generator)


def _directions(
    model: PeftModel,
    adapter: str,
    batches: Sequence[Batch],
    loss_of: LossOfBatch,
    generator: torch.Generator,
) -> dict[str, TaskDirections]:
    layers = _visible_layers(model, adapter)
    tests = {m: _random_tests(layer, adapter, generator) for m, layer in layers.items()}
    first = _sketches(model, layers, tests, loss_of, batches)
    # The power step: what the first sketch found is where G is large.
    powered = {m: (_orthonormal(s.right), _orthonormal(s.left)) for m, s in first.items()}
    second = _sketches(model, layers, powered, loss_of, batches)
    directions = {m: _leading(layers[m], adapter, sketch) for m, sketch in second.items()}
    return _scaled(layers, directions, loss_of, batches)


@torch.no_grad()
def place_directions(
    model: PeftModel, directions: Mapping[str, TaskDirections], adapter: str = "default"
) -> None:
    """Put the chosen directions in the place of an adapter's; its core stays as it is.

    Args:
        model: its adapter has the form "core".
        directions: by module, of the adapter's p and phi.
        adapter: PEFT's name for it.
    """
    from sharespace.tuner import layers_of

    layers = layers_of(model, adapter)
    for module, placed in directions.items():
        layer = layers[module]
        _fill(layer.sharespace_left_coefficients[adapter], placed.left_known)
        right = layer.sharespace_right_coefficients[adapter]
        _fill(right, placed.right_known)
        right.mul_(placed.right_scale.to(right))
        if adapter in layer.sharespace_left_temporary:
            layer.sharespace_left_temporary[adapter].copy_(placed.left_new)
        if adapter in layer.sharespace_right_temporary:
            layer.sharespace_right_temporary[adapter].copy_(placed.right_new)


def descents(
    model: PeftModel, share: Share, data: object, training: TrainingSettings, setup: Setup
) -> dict[str, float]:
    """Known task -> how fast its update, scaled to norm 1, lowers the new task's loss.

    To first order dW = t C_i / |C_i| changes the loss by t <G, C_i> / |C_i|, where G is the
    gradient with respect to the core: beta^T (dL/dW) alpha, summed over modules. What is stored per
    task has no core, and counts as 0.

    Args:
        model: with the new task at dW = 0, its heads as far trained that the gradient means
            something.
        share: its tasks are compared.
        data: the new task's examples.
        training: its batch size and seed are used.
        setup: trainer and collator, which give the batches and the loss.
    """
    component = getattr(model.peft_config["default"], "component", None)
    prefix = f"{component}." if component else ""
    with probe_trainer(model, data, training, setup) as trainer, fixed_statistics(model):
        cores = core_gradients(model, trainer, training)
    gradients = {prefix + module: core for module, core in cores.items()}
    return {name: _descent(share, name, gradients) for name in share.tasks}


def core_gradients(
    model: nn.Module, trainer: TrainerLike, training: TrainingSettings
) -> dict[str, Tensor]:
    """Module -> beta^T (dL/dW) alpha, k_left x k_right float64, summed over the first batches.

    Args:
        model: with a task at dW = 0.
        trainer: gives the batches, and the loss of each.
        training: its batch size.
    """
    layers = _visible_layers(model, "default")
    # No columns: of the gradient only the core is asked for.
    tests = {
        m: (torch.zeros(len(layer.right_basis), 0), torch.zeros(len(layer.left_basis), 0))
        for m, layer in layers.items()
    }
    loss_of = partial(trainer.compute_loss, model)
    sketches = _sketches(model, layers, tests, loss_of, _first_batches(trainer, training))
    return {module: sketch.core for module, sketch in sketches.items()}


def _fill(coefficients: Tensor, known: Tensor) -> None:
    """The block of the basis; the block of the temporary directions is the identity already."""
    coefficients[: known.shape[0], : known.shape[1]] = known.to(coefficients)


def _visible_layers(model: nn.Module, adapter: str) -> dict[str, SubspaceLayer]:
    """Layers whose gradient can be seen: all but convolutions in groups.

    Each group of those multiplies other inputs, so that their update is no product of two factors.
    """
    from sharespace.tuner import layers_of

    layers = layers_of(model, adapter)
    return {m: layer for m, layer in layers.items() if not is_grouped(layer.innermost)}


def _first_batches(trainer: TrainerLike, training: TrainingSettings) -> list[Batch]:
    count = max(_EXAMPLES // training.per_device_train_batch_size, 1)
    return list(islice(trainer.get_train_dataloader(), count))


def for_probe(training: TrainingSettings) -> TrainingSettings:
    """The settings without all that evaluates, reports or writes."""
    given = {name: value for name, value in training.arguments.items() if name != "output_dir"}
    return replace(
        training,
        early_stopping_patience=None,
        # Only heads are trained here.
        learning_rate=training.head_rate,
        report_to=(),
        arguments={**given, **_NOTHING_KEPT},
    )


def silent(setup: Setup, evaluation: object = None) -> Setup:
    """The setup without metrics, callbacks and a checkpoint to resume from."""
    return replace(setup, evaluation=evaluation, metrics=None, callbacks=(), resume=None)


@contextmanager
def probe_trainer(
    model: nn.Module, data: object, training: TrainingSettings, setup: Setup
) -> Iterator[TrainerLike]:
    """A trainer of the caller's kind that evaluates, reports and writes nothing."""
    with trainer_for(model, data, for_probe(training), silent(setup)) as trainer:
        yield trainer


def _new_directions(layer: SubspaceLayer, adapter: str) -> tuple[int, int]:
    """(phi_left, phi_right): temporary directions of a layer's adapter."""
    sides = layer.sharespace_left_temporary, layer.sharespace_right_temporary
    left, right = (new[adapter].shape[1] if adapter in new else 0 for new in sides)
    return left, right


def _random_tests(layer: SubspaceLayer, adapter: str, generator: torch.Generator) -> TestMatrices:
    left, right = (count + _OVERSAMPLED for count in _new_directions(layer, adapter))
    d, n = layer.right_basis.shape[0], layer.left_basis.shape[0]
    # What G is multiplied with from the right is d x s, and shows left directions.
    return (
        torch.randn(d, min(left, d), generator=generator),
        torch.randn(n, min(right, n), generator=generator),
    )


def _sketches(
    model: nn.Module,
    layers: Mapping[str, SubspaceLayer],
    tests: Mapping[str, TestMatrices],
    loss_of: LossOfBatch,
    batches: Sequence[Batch],
) -> dict[str, GradientSketch]:
    """beta^T G alpha, G R and G^T L of every layer, summed over the batches.

    Each layer adds (beta C alpha^T + X R^T + L Y^T) x to its output, with C = X = Y = 0: their
    gradients are the answer. Weights are not asked for gradients, so that quantised base models do.
    """
    model.eval()
    with _zero_updates(layers, tests) as updates:
        wanted = [tensor for update in updates.values() for tensor in update]
        # float64 on the CPU: the sums of hundreds of examples are compared with each other.
        sums = [torch.zeros_like(tensor, dtype=torch.float64, device="cpu") for tensor in wanted]
        for batch in batches:
            loss = loss_of(batch)
            # A layer that this batch does not reach has no gradient.
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient.double().cpu()
    _sum_over_processes(sums)
    return {m: GradientSketch(*sums[3 * i : 3 * i + 3]) for i, m in enumerate(updates)}


def _sum_over_processes(sums: Sequence[Tensor]) -> None:
    """In a distributed training each process sees its own batches, and all must choose alike."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    for total in sums:
        moved = total.to(device)
        distributed.all_reduce(moved)
        total.copy_(moved)


@contextmanager
def _zero_updates(
    layers: Mapping[str, SubspaceLayer], tests: Mapping[str, TestMatrices]
) -> Iterator[dict[str, tuple[Tensor, Tensor, Tensor]]]:
    """Zero tensors (C, X, Y) through which the layers' outputs pass."""
    updates, handles = {}, []
    for module, layer in layers.items():
        device = layer.left_basis.device
        right, left = (test.float().to(device) for test in tests[module])
        (n, k_left), (d, k_right) = layer.left_basis.shape, layer.right_basis.shape
        core = torch.zeros(k_left, k_right, device=device, requires_grad=True)
        outer_left = torch.zeros(n, right.shape[1], device=device, requires_grad=True)
        outer_right = torch.zeros(d, left.shape[1], device=device, requires_grad=True)
        updates[module] = (core, outer_left, outer_right)
        handles.append(
            layer.register_forward_hook(_adds_update(layer, updates[module], right, left))
        )
    try:
        yield updates
    finally:
        for handle in handles:
            handle.remove()


def _adds_update(
    layer: SubspaceLayer, update: tuple[Tensor, Tensor, Tensor], right: Tensor, left: Tensor
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook that adds (beta C alpha^T + X R^T + L Y^T) x to a layer's output."""
    core, outer_left, outer_right = update
    inner = layer.innermost

    def add(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = arguments[0].float()
        alpha, beta = layer.right_basis.float(), layer.left_basis.float()
        z = coordinates(inner, torch.cat([alpha, right], dim=1).mT, x)
        k = alpha.shape[1]
        total = functional.linear(functional.linear(z[..., :k], core), beta)
        # A convolution cannot have no output channels.
        if right.shape[1]:
            total = total + functional.linear(z[..., k:], outer_left)
        if left.shape[1]:
            total = total + functional.linear(coordinates(inner, outer_right.mT, x), left)
        return output + as_output(inner, total).to(output.dtype)

    return add


def _leading(layer: SubspaceLayer, adapter: str, sketch: GradientSketch) -> TaskDirections:
    """The leading directions inside the subspace, and outside of it on each side."""
    p = layer.sharespace_core[adapter].shape[0]
    phi_left, phi_right = _new_directions(layer, adapter)
    u, _, vh = torch.linalg.svd(sketch.core, full_matrices=True)
    return TaskDirections(
        u[:, : p - phi_left],
        vh[: p - phi_right].mT,
        _outside(layer.left_basis, sketch.left, phi_left),
        _outside(layer.right_basis, sketch.right, phi_right),
        torch.ones(p, dtype=torch.float64),
    )


def _outside(basis: Tensor, sketch: Tensor, count: int) -> Tensor:
    """Leading left singular vectors of a sketch without its part in the basis."""
    # A basis that is stored in 16 bits is orthonormal to 1e-3 only: its own Q, in float64.
    q = _orthonormal(basis.double().cpu())
    rest = sketch
    # Twice, as one pass leaves what rounding put back into the basis.
    for _ in range(2):
        rest = rest - q @ (q.mT @ rest)
    directions: Tensor = torch.linalg.svd(rest, full_matrices=False)[0][:, :count]
    # A sketch that lies in the basis leaves rounding alone, whose vectors may lean into it again.
    directions = directions - q @ (q.mT @ directions)
    return _orthonormal(directions)


def _orthonormal(columns: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(columns)[0]
    return q


@torch.no_grad()
def _scaled(
    layers: Mapping[str, SubspaceLayer],
    directions: Mapping[str, TaskDirections],
    loss_of: LossOfBatch,
    batches: Sequence[Batch],
) -> dict[str, TaskDirections]:
    """The same with right directions that see inputs of unit root mean square.

    Adam moves every number of the core by the same step, so without this the few directions in
    which transformers' hidden states are large would take the step size for themselves.
    """
    energies = {
        m: torch.zeros(len(d.right_scale), dtype=torch.float64) for m, d in directions.items()
    }
    counts = dict.fromkeys(directions, 0)

    def watch(module: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        placed, layer = directions[module], layers[module]
        alpha = layer.right_basis.double()
        columns = torch.cat([alpha @ placed.right_known.to(alpha), placed.right_new.to(alpha)], 1)
        rows = columns.float().mT.contiguous()

        def add(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            z = coordinates(layer.innermost, rows, arguments[0].float()).flatten(0, -2)
            energies[module] += z.double().square().sum(0).cpu()
            counts[module] += len(z)

        return add

    handles = [layers[m].register_forward_pre_hook(watch(m)) for m in directions]
    try:
        for batch in batches[:_SCALE_BATCHES]:
            loss_of(batch)
    finally:
        for handle in handles:
            handle.remove()
    totals = {m: torch.tensor(float(count)) for m, count in counts.items()}
    _sum_over_processes([*energies.values(), *totals.values()])
    return {
        m: replace(d, right_scale=_inverse_size(energies[m], int(totals[m])))
        for m, d in directions.items()
    }


def _inverse_size(energy: Tensor, count: int) -> Tensor:
    """1 / root mean square of each coordinate; small ones as if they were a tenth of the largest,
    so that noise is not blown up."""
    size = (energy / max(count, 1)).sqrt()
    largest = float(size.max()) if len(size) else 0.0
    return 1 / size.clamp(min=largest / 10) if largest else torch.ones_like(size)


def _descent(share: Share, name: str, gradients: Mapping[str, Tensor]) -> float:
    """-<G, C> / |C| over all modules; 0 for a task without anything in the subspace."""
    product = energy = 0.0
    for module, value in share.task(name).coefficients.items():
        if value.is_shared and module in gradients:
            core = value.core(share.model.layers[module].k)
            product += float((gradients[module] * core).sum())
            energy += float(core.square().sum())
    return -product / math.sqrt(energy) if energy else 0.0
