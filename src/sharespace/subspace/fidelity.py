"""What a Share model keeps of each task, what a step cost it, and how many bytes it takes.

Errors are measured against adapters, or bounded by the ledger, which is certain (docs/method.md,
"Ledger"). A step that costs a task much is warned of, or refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch

from sharespace.errors import LossWarning, OptionError, TaskNotFoundError
from sharespace.linalg.frames import errors as residual_errors
from sharespace.linalg.updates import CanonicalUpdates
from sharespace.options import Limits, OptionType, check_option
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.basis_method import dense_cores
from sharespace.subspace.build_layer import read_updates
from sharespace.subspace.coefficients import Coefficients
from sharespace.subspace.layer import LayerDimensions, group_size, tensor_bytes
from sharespace.subspace.state import ShareModel, Task
from sharespace.words import percent

ERASED_ERROR = 0.99
"""Relative error from which on nothing of a task is left."""
LARGE_BOUND = 0.3
"""Bound on a task's relative error that is worth a warning; what it means for a score depends on
the task."""

_GROWN = 1e-5
"""By how much a bound grows with rounding alone, which is no loss."""

_CPU = torch.device("cpu")

StorageKind: TypeAlias = Literal["whole", "leading", "per_task", "nothing"]


@dataclass(frozen=True)
class LayerFidelity:
    """One module of one task, relative to |dW| of the module at entry."""

    relative_error: float
    bound: float
    """The bound of the ledger: it holds whatever happened since entry."""


@dataclass(frozen=True)
class TaskFidelity:
    """One task: root of the summed squared error over all layers by the summed squared norm."""

    relative_error: float
    worst_layer: str
    worst_layer_error: float
    bound: float
    measured: bool
    """True: measured (against the adapter, or by the ledger's only event). False: estimated as
    the root of the ledger's summed squares; only ``bound`` is certain then."""
    layers: Mapping[str, LayerFidelity]


@dataclass(frozen=True)
class Bytes:
    """Sizes in the stored dtypes."""

    basis: int
    coefficients: int
    """Coefficients of all tasks, updates stored per task included."""
    other: int
    """What is kept beside (heads, biases ...) and the ledgers."""
    adapters: int
    """What the adapters took that the tasks came from."""

    @property
    def total(self) -> int:
        return self.basis + self.coefficients + self.other


@dataclass(frozen=True)
class Fidelity:
    """What a Share model keeps."""

    tasks: Mapping[str, TaskFidelity]
    certificates: Mapping[str, float]
    """Module -> bound, from energies alone, on the root of the tasks' summed squared relative
    errors by the layer's build or its last truncation. What earlier events lost is not in it; the
    ledger's bounds have everything."""
    bytes: Bytes

    @property
    def mean_relative_error(self) -> float:
        """Mean over the tasks; 0 where there is none."""
        return sum(t.relative_error for t in self.tasks.values()) / max(len(self.tasks), 1)

    @property
    def max_relative_error(self) -> float:
        """That of the task that lost most; 0 where there is none."""
        return max((t.relative_error for t in self.tasks.values()), default=0.0)


def fidelity(model: ShareModel, against: Sequence[Adapter] = ()) -> Fidelity:
    """What the model keeps of every task, or of those in ``against`` by their originals.

    Args:
        against: original adapters by task name; their errors are measured. Without them errors
            come from the ledger.

    Raises:
        TaskNotFoundError: an adapter has the name of no task.
    """
    for adapter in against:
        if adapter.name not in model.tasks:
            known = ", ".join(map(repr, list(model.tasks)[:10])) or "none"
            raise TaskNotFoundError(
                f"adapter {adapter.name!r}",
                "the Share model has no task of that name",
                f"Name it as a known task: NAME=PATH. Known tasks: {known}",
            )
    measured = measure(model, against)
    names = [a.name for a in against] or list(model.tasks)
    tasks = {n: _task_fidelity(model.tasks[n], measured.get(n)) for n in names}
    certificates = {
        m: layer.certificate.bound for m, layer in model.layers.items() if layer.certificate
    }
    return Fidelity(tasks, certificates, sizes(model))


def _task_fidelity(task: Task, lost: Mapping[str, float] | None) -> TaskFidelity:
    ledger = task.ledger
    bounds = dict(zip(ledger.modules, ledger.bounds.tolist(), strict=True))
    measured = lost is not None or ledger.measured
    if lost is None:
        squares = ledger.estimates.tolist()
        lost = bounds if measured else dict(zip(ledger.modules, squares, strict=True))
    errors = torch.tensor([lost[m] for m in ledger.modules], dtype=torch.float64)
    layers = {
        m: LayerFidelity(_ratio(lost[m], ledger.norm(m)), _ratio(bounds[m], ledger.norm(m)))
        for m in ledger.modules
    }
    worst = max(layers, key=lambda m: layers[m].relative_error, default="")
    return TaskFidelity(
        relative_error=_ratio(float(errors.square().sum().sqrt()), ledger.total_norm),
        worst_layer=worst,
        worst_layer_error=layers[worst].relative_error if worst else 0.0,
        bound=ledger.bound,
        measured=measured,
        layers=layers,
    )


def _ratio(part: float, whole: float) -> float:
    """0 for an update that was zero at entry: it has nothing to lose."""
    return part / whole if whole else 0.0


def measure(model: ShareModel, originals: Sequence[Adapter]) -> dict[str, dict[str, float]]:
    """Task -> module -> |dW - stored|, by the original adapters, one layer at a time."""
    lost: dict[str, dict[str, float]] = {a.name: {} for a in originals}
    for module in model.layers:
        members = [
            a
            for a in originals
            if module in a.shapes and module in model.tasks[a.name].coefficients
        ]
        if members:
            updates = read_updates(members, module, _CPU)
            for adapter, error in zip(
                members, _layer_errors(model, module, members, updates), strict=True
            ):
                lost[adapter.name][module] = error
    return lost


def _layer_errors(
    model: ShareModel, module: str, members: Sequence[Adapter], updates: CanonicalUpdates
) -> list[float]:
    layer = model.layers[module]
    values = [model.tasks[a.name].coefficients[module] for a in members]
    cores = dense_cores(values, layer)
    result: list[float] = residual_errors(
        updates, layer.left_basis, layer.right_basis, cores
    ).tolist()
    for i, value in enumerate(values):
        if not value.is_shared:
            result[i] = float(residual_errors(updates.select([i]), *value.framed(layer))[0])
    return result


def sizes(model: ShareModel) -> Bytes:
    """Bytes of the model's tensors."""
    tasks = model.tasks.values()
    return Bytes(
        basis=sum(layer.nbytes for layer in model.layers.values()),
        coefficients=sum(c.nbytes for t in tasks for c in t.coefficients.values()),
        other=sum(_other(t) for t in tasks),
        adapters=sum(t.adapter_bytes for t in tasks),
    )


def _other(task: Task) -> int:
    return tensor_bytes(*task.kept.values(), task.ledger.norms, task.ledger.truncations)


@dataclass(frozen=True)
class UpdateTally:
    """Updates that are stored in one way."""

    updates: int = 0
    nbytes: int = 0
    """Bytes as stored; of updates in a subspace without its bases, which are common."""

    def __add__(self, other: UpdateTally) -> UpdateTally:
        return UpdateTally(self.updates + other.updates, self.nbytes + other.nbytes)


@dataclass(frozen=True)
class StorageTally:
    """The updates of a layer, a task or a model, by the way in which they are stored."""

    whole: UpdateTally = UpdateTally()
    """In all directions of the layer's subspace, or of their group's."""
    leading: UpdateTally = UpdateTally()
    """In its leading directions only; the coefficients of the others would be zero."""
    per_task: UpdateTally = UpdateTally()
    """Outside of it, each by its own truncated SVD."""
    nothing: UpdateTally = UpdateTally()
    """Not at all, because the bytes did not reach so far; or the update is zero."""

    @property
    def inside(self) -> UpdateTally:
        """The updates in the subspace."""
        return self.whole + self.leading

    @property
    def total(self) -> UpdateTally:
        """All updates, those that are stored not at all included."""
        return self.inside + self.per_task + self.nothing

    def __add__(self, other: StorageTally) -> StorageTally:
        return StorageTally(
            self.whole + other.whole,
            self.leading + other.leading,
            self.per_task + other.per_task,
            self.nothing + other.nothing,
        )


@dataclass(frozen=True)
class ModelStorage:
    """How a model stores its updates."""

    layers: Mapping[str, StorageTally]
    tasks: Mapping[str, StorageTally]
    kinds: Mapping[str, Mapping[str, StorageKind]]
    """Task -> module that it adapts -> how its update there is stored."""

    @property
    def total(self) -> StorageTally:
        """The updates of all layers, by the way in which they are stored."""
        return sum(self.layers.values(), StorageTally())


def storage_kind(value: Coefficients, layer: LayerDimensions) -> StorageKind:
    """How an update is stored."""
    if not value.nbytes or not value.rank:
        return "nothing"
    if not value.is_shared:
        return "per_task"
    if not all(value.used):
        return "nothing"
    own = group_size(layer, value.offset)
    return "whole" if value.used in (own, layer.k) else "leading"


def tally_storage(tasks: Iterable[Task], dimensions: Mapping[str, LayerDimensions]) -> ModelStorage:
    """Count how the updates of these tasks are stored; no task is held.

    Args:
        tasks: of a model.
        dimensions: module -> layer, of all its layers.
    """
    layers = dict.fromkeys(dimensions, StorageTally())
    by_task: dict[str, StorageTally] = {}
    kinds: dict[str, dict[str, StorageKind]] = {}
    for task in tasks:
        kinds[task.name] = {m: storage_kind(c, dimensions[m]) for m, c in task.coefficients.items()}
        tally = StorageTally()
        for module, how in kinds[task.name].items():
            one = _one(how, task.coefficients[module].nbytes)
            layers[module] += one
            tally += one
        by_task[task.name] = tally
    return ModelStorage(layers, by_task, kinds)


def _one(how: StorageKind, nbytes: int) -> StorageTally:
    return replace(StorageTally(), **{how: UpdateTally(1, nbytes)})


@dataclass(frozen=True)
class TaskLoss:
    """A task that one step took something from."""

    task: str
    bound: float
    """On its relative error, after the step."""

    def __str__(self) -> str:
        name = self.task if self.task.isprintable() else repr(self.task)
        return f"{name} {percent(self.bound)}"


def losses(
    before: ShareModel | None, after: ShareModel, above: float = LARGE_BOUND
) -> list[TaskLoss]:
    """Tasks, old and new, whose bound the step raised to more than a limit; the worst first.

    A task that was above it before, and of which the step took nothing, is not one of them.

    Args:
        before: the model before the step; None: there was none.
        after: the model.
        above: the limit.
    """
    known = {} if before is None else before.tasks
    lost = [
        TaskLoss(name, task.ledger.bound)
        for name, task in after.tasks.items()
        if task.ledger.bound > max(above, _bound_before(known.get(name)) + _GROWN)
    ]
    return sorted(lost, key=lambda loss: -loss.bound)


def _bound_before(task: Task | None) -> float:
    return 0.0 if task is None else task.ledger.bound


def refuse_losses(before: ShareModel, after: ShareModel, max_error: float | None) -> None:
    """Refuse a step that costs a task more than it may.

    Args:
        before: the model before the step.
        after: the model; it is not stored yet.
        max_error: largest bound on a task's relative error that the step may lead to; None: any.

    Raises:
        OptionError: a task, old or new, would be above it.
    """
    if max_error is None:
        return
    lost = losses(before, after, max_error)
    if lost:
        raise OptionError(
            f"max error {percent(max_error)}",
            f"the error would be up to {some_losses(lost)}",
            "Give more room (--cap N, or a larger budget), or leave out what does not fit",
        )


def check_max_error(max_error: float | None) -> None:
    """Refuse what is no relative error.

    Raises:
        OptionError: it is not a number from 0 to 1.
    """
    check_option("max_error", max_error, OptionType(float, optional=True), Limits(least=0, most=1))


def warn_of_losses(before: ShareModel | None, after: ShareModel) -> None:
    """A ``LossWarning`` where a step took much from a task."""
    lost = losses(before, after)
    if lost:
        warnings.warn(
            f"The error is up to {some_losses(lost)}. Give more room (a larger k, cap or budget), "
            "or see with fidelity(against=...) what it is",
            LossWarning,
            stacklevel=3,
        )


def some_losses(lost: list[TaskLoss], most: int = 3) -> str:
    """``a 97 %, b 93 % and 4 more``."""
    shown = ", ".join(map(str, lost[:most]))
    return shown + (f" and {len(lost) - most} more" if len(lost) > most else "")
