"""The values that everything else passes around: a Share model, its tasks and their ledgers.

All are frozen; ``with_*`` methods and the functions here give changed copies.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sharespace.errors import MismatchError, OptionError, TaskExistsError, TaskNotFoundError
from sharespace.linalg.frames import frame_difference
from sharespace.linalg.updates import product_energy
from sharespace.mixture_names import parse_mixture
from sharespace.options import check_options, option
from sharespace.subspace.adapter import (
    LEARNED,
    Adapter,
    BaseModel,
    LayerUpdate,
    ModuleShape,
    Provenance,
    fingerprint,
    refuse_not_finite,
)
from sharespace.subspace.basis_methods import DEFAULT_METHOD, basis_method, method_names
from sharespace.subspace.coefficients import CoefficientPair, Coefficients
from sharespace.subspace.layer import LayerSubspace

FINETUNE = "finetune"
"""Event of a ledger after which a task is what was trained then, and not what it came as."""

CALIBRATE = "calibrate"
"""Event of a ledger: coefficients were moved on purpose, so far from what the task came as."""

_NEGLIGIBLE = 1e-5
"""Fraction of a module's norm that an exact merge may round away."""

MAX_NAME = 200
"""Most characters of a new task's name."""

MAX_NAME_BYTES = 240
"""Most bytes of it in UTF-8: a file's name has 255, and a suffix follows."""

_SHOWN = 80

_BASIS_IDS: WeakKeyDictionary[ShareModel, str] = WeakKeyDictionary()
"""What ``basis_id`` has computed already."""


@dataclass(frozen=True, eq=False)
class Ledger:
    """What a task has lost since it came, module by module (docs/method.md, "Ledger")."""

    modules: tuple[str, ...]
    norms: Tensor
    """float64 [modules]: |dW| (Frobenius) at entry; the task's weight is its inverse, for ever."""
    truncations: Tensor
    """float64 [modules, events]: absolute norm of what each event took away, casts included."""
    events: tuple[str, ...]
    """What each event was, for example ``"init"`` or ``"merge"``."""

    def with_event(self, event: str, lost: Mapping[str, float]) -> Ledger:
        """The ledger after one more event; modules that are not named lost nothing.

        Args:
            event: what happened, for example ``"merge"``.
            lost: module -> Frobenius norm of what the event took away.
        """
        column = torch.tensor([[lost.get(m, 0.0)] for m in self.modules], dtype=torch.float64)
        return replace(
            self,
            truncations=torch.cat([self.truncations, column.reshape(-1, 1)], dim=1),
            events=(*self.events, event),
        )

    def with_names(self, names: Mapping[str, str]) -> Ledger:
        """The ledger with other names for some of its modules (old name -> new name).

        Args:
            names: old -> new path of the modules to rename; the others keep theirs.
        """
        return replace(self, modules=tuple(names.get(m, m) for m in self.modules))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {m: i for i, m in enumerate(self.modules)}

    def norm(self, module: str) -> float:
        """|dW| of the module at entry.

        Args:
            module: path of an adapted module.
        """
        return float(self.norms[self._index[module]])

    @property
    def total_norm(self) -> float:
        """|dW| over all modules at entry."""
        return float(self.norms.square().sum().sqrt())

    @property
    def segment_start(self) -> int:
        """Index of the first event that counts: the last finetune, which made the task anew."""
        return self._segment_before(len(self.events))

    def _segment_before(self, end: int) -> int:
        """Index of the last finetune among the events before ``end``, or 0."""
        return max((i for i, event in enumerate(self.events[:end]) if event == FINETUNE), default=0)

    @property
    def bounds(self) -> Tensor:
        """float64 [modules]: absolute bound on each module's error since the last finetune; the
        sum, by the triangle inequality (a root of the sum of squares would not be a bound)."""
        return self.truncations[:, self.segment_start :].sum(dim=1)

    @property
    def bound(self) -> float:
        """Bound on the relative error of the whole task since the last finetune."""
        return self._relative(self.bounds)

    @property
    def earlier_bound(self) -> float:
        """Bound on the relative error that the task had reached before the last finetune, since
        the finetune before that one where there was one; 0 without a finetune."""
        start = self._segment_before(self.segment_start)
        return self._relative(self.truncations[:, start : self.segment_start].sum(dim=1))

    def _relative(self, bounds: Tensor) -> float:
        total = self.total_norm
        return float(bounds.square().sum().sqrt()) / total if total else 0.0

    @property
    def estimates(self) -> Tensor:
        """float64 [modules]: root of the summed squares since the last finetune; what the error is
        where the events lost things orthogonal to each other."""
        return self.truncations[:, self.segment_start :].square().sum(dim=1).sqrt()

    @property
    def measured(self) -> bool:
        """True while all but one event took no more than rounding, so that the ledger is the error
        itself."""
        counted = self.truncations[:, self.segment_start :]
        if not counted.shape[1]:
            return True
        # Rounding adds up whatever its direction; two truncations may also cancel in part.
        others = counted.sum(dim=1) - counted.amax(dim=1)
        return bool((others <= _NEGLIGIBLE * self.norms).all())


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a Share model."""

    name: str
    coefficients: Mapping[str, Coefficients]
    """Adapted module -> coefficients; a module that the task does not adapt has no entry."""
    ledger: Ledger
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """What came with the task and is not compressed, by its key in the adapter's file."""
    config: Mapping[str, object] = field(default_factory=dict)
    """What an export needs (see Adapter.config)."""
    provenance: Provenance = LEARNED
    adapter_bytes: int = 0
    """Bytes of the adapter it came from."""
    files: Mapping[str, Tensor] = field(default_factory=dict)
    """Tokenizer and chat template that came with it (see Adapter.files)."""
    labels: tuple[str, ...] = ()
    """Names of its classes (see Adapter.labels)."""
    started_from: Mapping[str, float] = field(default_factory=dict)
    """File name of a task's coefficients in the store -> weight with which it was started from."""

    def __post_init__(self) -> None:
        for name in ("coefficients", "config", "started_from"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def ranks(self) -> dict[str, int]:
        """Adapted module -> rank of the task's update there, as it is stored and exported."""
        return {module: value.rank for module, value in self.coefficients.items()}

    def with_name(self, name: str) -> Task:
        """The task under another name.

        Args:
            name: the new name; any non-empty text.
        """
        return replace(self, name=name)


@dataclass(frozen=True)
class BuildSettings:
    """How the subspace is chosen, at the build and again at every merge.

    Raises:
        OptionError: a value is not of its type, out of its range or not known, or the method
            cannot centre.
    """

    method: str = option(DEFAULT_METHOD, choices=method_names)
    """How bases are found: a name of ``sharespace.subspace.basis_methods``."""
    centred: bool = option(False)
    """Subtract the mean column and keep it as one direction, where the method can."""
    p: int | None = option(None, least=1)
    """Pseudo-rank; None: min(k, r) of each adapter, exact for the projection."""
    cap: int | None = option(None, least=1)
    """Largest k a merge may grow a layer to; None: as many directions as the tasks need."""
    budget: int | None = option(None, least=0)
    """Bytes that bases and coefficients may take together; None: no limit."""
    seed: int = option(0)
    """Seed of the randomised range finder."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.centred and not basis_method(self.method).can_centre:
            raise OptionError("centred", f"method {self.method!r} cannot centre", "Leave it out")


@dataclass(frozen=True, eq=False)
class ShareModel:
    """One subspace per adapted module, and tiny coefficients per task."""

    base: BaseModel
    settings: BuildSettings
    dtype: torch.dtype
    """Stored dtype of bases and coefficients."""
    layers: Mapping[str, LayerSubspace]
    tasks: Mapping[str, Task]
    """In the order in which they came; may read each task's file on first access."""
    base_samples: Mapping[str, Tensor] = field(default_factory=dict)
    """Adapted module -> ``sampled_rows`` of the base weight that its tasks belong to; empty until
    the weights were at hand."""

    def __post_init__(self) -> None:
        for name in ("layers", "tasks"):
            value = getattr(self, name)
            if isinstance(value, dict):
                object.__setattr__(self, name, MappingProxyType(dict(value)))

    @property
    def shapes(self) -> dict[str, ModuleShape]:
        """The shape of every adapted module, by its path in the base model."""
        return {name: layer.shape for name, layer in self.layers.items()}

    @property
    def fingerprint(self) -> str:
        """Identity of the adapted modules' names and shapes."""
        return fingerprint(self.shapes)

    def task(self, name: str) -> Task:
        """The task of that name.

        Args:
            name: the task's name.

        Raises:
            TaskNotFoundError: there is none.
        """
        if name not in self.tasks:
            known = ", ".join(repr(n) for n in list(self.tasks)[:10]) or "none"
            raise TaskNotFoundError(
                f"task {name!r}", "not in this Share model", f"Known tasks: {known}"
            )
        return self.tasks[name]

    def with_layers(self, layers: Mapping[str, LayerSubspace]) -> ShareModel:
        """The model with exactly these layers.

        Args:
            layers: adapted module -> its bases.
        """
        return replace(self, layers=dict(layers))

    def with_tasks(self, tasks: Iterable[Task]) -> ShareModel:
        """The model with exactly these tasks.

        Args:
            tasks: in the order in which they came; coefficients in the layers of this model.
        """
        return replace(self, tasks={t.name: t for t in tasks})

    def without_tasks(self, *names: str) -> ShareModel:
        """The model without these tasks; the subspace stays as it is.

        Args:
            names: names of the tasks to leave out.

        Raises:
            TaskNotFoundError: one of them is not there.
        """
        for name in names:
            self.task(name)
        return replace(self, tasks={n: t for n, t in self.tasks.items() if n not in names})

    def with_renamed(self, old: str, new: str) -> ShareModel:
        """The model with one task under another name, in its place.

        Args:
            old: the task's name.
            new: its new name; any non-empty text that no other task has.

        Raises:
            TaskNotFoundError: there is no task ``old``.
            TaskExistsError: there is a task ``new``.
            OptionError: no new task may have that name.
        """
        self.task(old)
        check_new_names([new], [n for n in self.tasks if n != old])
        return self.with_tasks(t.with_name(new) if n == old else t for n, t in self.tasks.items())


def reconstruct(model: ShareModel, name: str) -> Mapping[str, LayerUpdate]:
    """A task's updates by module, in the compute dtype.

    Raises:
        TaskNotFoundError: there is no such task.
    """
    task = model.task(name)
    return {m: c.as_update(model.layers[m]) for m, c in task.coefficients.items()}


def stored_norm(model: ShareModel, name: str) -> float:
    """|dW| over all modules of a task as it is stored now.

    Raises:
        TaskNotFoundError: there is no such task.
    """
    updates = reconstruct(model, name).values()
    return math.sqrt(sum(product_energy(update.up, update.down.mT) for update in updates))


def as_adapter(model: ShareModel, task: Task) -> Adapter:
    """A task as an adapter again, read layer by layer; it carries all that came with the task."""
    return Adapter(
        name=task.name,
        base=model.base,
        shapes={m: model.layers[m].shape for m in task.coefficients},
        ranks=task.ranks,
        dtype=model.dtype,
        layer=lambda module: task.coefficients[module].as_update(model.layers[module]),
        kept=task.kept,
        files=task.files,
        labels=task.labels,
        started_from=task.started_from,
        config=task.config,
        provenance=task.provenance,
        nbytes=task.adapter_bytes,
    )


def retrained(
    model: ShareModel,
    task: str,
    pairs: Mapping[str, CoefficientPair],
    kept: Mapping[str, Tensor],
    event: str = FINETUNE,
) -> ShareModel:
    """The model with one task's coefficients and heads replaced; nothing else changes.

    After ``FINETUNE`` the ledger starts a new segment: the task is now what was trained, so its
    bound counts only what is lost from here on; the bound before stays on record (docs/method.md,
    "Ledger"). After ``CALIBRATE`` the task is still what it came as, and the bound grows by how far
    its update was moved.

    Args:
        pairs: module -> (E, F); modules that are not named stay as they are. Of a group's task
            in the directions of its own subspace, or of all.
        kept: what the task carries besides, by the key in the adapter's file.
        event: ``FINETUNE`` or ``CALIBRATE``.

    Raises:
        TaskNotFoundError: there is no such task.
        MismatchError: a pair does not fit its module's bases, or is of a module the task lacks.
        OptionError: a pair holds NaN or infinity, or is too large for the stored dtype.
        CorruptAdapterError: what is kept holds NaN or infinity.
    """
    known = model.task(task)
    refuse_not_finite(f"task {task!r}", kept)
    new = {m: _stored(model, known, m, pair, model.dtype) for m, pair in pairs.items()}
    if event == CALIBRATE:
        before: Mapping[str, Coefficients] = known.coefficients
    else:
        # What was trained, unrounded: only the cast to the stored dtype is lost.
        exact = {m: (e.double().cpu(), f.double().cpu()) for m, (e, f) in pairs.items()}
        before = {m: _stored(model, known, m, pair, torch.float64) for m, pair in exact.items()}
    lost = {m: _distance(model.layers[m], before[m], new[m]) for m in new}
    refuse_overflow(task, lost, model.dtype)
    changed = replace(
        known,
        coefficients={**known.coefficients, **new},
        ledger=known.ledger.with_event(event, lost),
        kept={**known.kept, **kept} if kept else known.kept,
    )
    return model.with_tasks(changed if t == task else model.tasks[t] for t in model.tasks)


def _stored(
    model: ShareModel, task: Task, module: str, pair: CoefficientPair, dtype: torch.dtype
) -> Coefficients:
    """One module's new coefficients in a dtype.

    Raises:
        MismatchError: see ``retrained``.
    """
    if module not in task.coefficients:
        raise MismatchError(
            f"module {module!r}", f"task {task.name!r} does not adapt it", "Leave it out"
        )
    return task.coefficients[module].with_factors(module, pair, model.layers[module], dtype)


def _distance(layer: LayerSubspace, old: Coefficients, new: Coefficients) -> float:
    """Frobenius norm of the difference of two updates of one module."""
    return float(frame_difference(old.framed(layer), new.framed(layer))[0])


def refuse_overflow(task: str, lost: Mapping[str, float], dtype: torch.dtype) -> None:
    """Refuse coefficients that became infinite when they were stored.

    Args:
        task: name of the task.
        lost: module -> measured norm of what storing took away; not finite where a number was too
            large for the dtype.
        dtype: stored dtype.

    Raises:
        OptionError: see above.
    """
    for module, value in lost.items():
        if not math.isfinite(value):
            name = str(dtype).removeprefix("torch.")
            raise OptionError(
                f"task {task!r}, module {module!r}",
                f"its coefficients are too large for {name}",
                "Store it in a wider dtype: build with --dtype float32 (dtype='float32'), or with "
                "float64",
            )


def check_new_names(new: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that no new task may have, and names that are taken.

    Raises:
        OptionError: a name breaks the rule of ``name_problem``.
        TaskExistsError: a name is twice in ``new``, or in ``known``.
    """
    new = list(new)
    for name in new:
        if why := name_problem(name):
            remedy = "Give it another name: NAME=PATH, {name: path} or task=NAME"
            raise OptionError(f"task {_short(name)}", why, remedy)
    check_free_names(new, known)


def check_free_names(new: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are taken; tasks that have a name already keep it, whatever it is.

    Raises:
        TaskExistsError: a name is twice in ``new``, or in ``known``.
    """
    seen = set(known)
    for name in new:
        if name in seen:
            raise TaskExistsError(
                f"task {_short(name)}",
                "there is a task of that name already",
                "Rename one of the two; an adapter is named by NAME=PATH or {name: path}",
            )
        seen.add(name)


def name_problem(name: str) -> str:
    """Why no new task may have a name; empty where it may.

    A name stands in tables and logs, is typed in commands and addressed over HTTP, and may become
    the name of a file. What is stored already under other names can be read and renamed.
    """
    size = len(name)
    too_long = size > MAX_NAME or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES
    rules = (
        (not name.strip(), "a task's name must not be empty"),
        (
            too_long,
            f"a name of {size} characters, more than {MAX_NAME} or {MAX_NAME_BYTES} bytes",
        ),
        ("/" in name or "\\" in name or name in (".", ".."), "the name looks like a path"),
        (not name.isprintable(), "the name has characters that cannot be printed"),
        (name != name.strip(), "the name begins or ends with a space"),
        (_reads_as_mixture(name), "the name reads as a mixture of tasks (TASK:WEIGHT)"),
    )
    return next((why for broken, why in rules if broken), "")


def _reads_as_mixture(name: str) -> bool:
    try:
        return parse_mixture(name) is not None
    except OptionError:
        return True


def _short(name: str) -> str:
    """A name for an error: as a Python literal, and cut."""
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")


def basis_id(model: ShareModel) -> str:
    """SHA-256 (hex) over the bases of all layers: names, shapes, dtypes and bytes.

    Coefficients mean something only together with the bases they were trained in; two models with
    the same id have the same bases, bit for bit. Computed once per model.
    """
    # Weak keys: a model is a value that nobody should keep alive only because it was once named.
    if model not in _BASIS_IDS:
        digest = hashlib.sha256()
        # Sorted, so that the order in which modules were met does not matter.
        for name in sorted(model.layers):
            layer = model.layers[name]
            # A module's name comes from a file and may hold what strict UTF-8 refuses.
            digest.update(name.encode("utf-8", "surrogatepass"))
            digest_basis(digest, layer.left_basis)
            digest_basis(digest, layer.right_basis)
        _BASIS_IDS[model] = digest.hexdigest()
    return _BASIS_IDS[model]


def digest_basis(digest: hashlib._Hash, basis: Tensor) -> None:
    """Add one basis to a digest."""
    digest.update(f"\t{tuple(basis.shape)}\t{basis.dtype}\n".encode())
    if basis.numel():
        digest.update(basis.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
