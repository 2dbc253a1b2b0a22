"""Combine tasks of one Share model into one: a weighed sum of their updates, or another method.

In one subspace a weighed sum of updates is the same sum of cores, exact and without a decomposition
(docs/method.md, "Combinations"). Other methods work on the cores in the coordinates of the combined
tasks' own singular directions (Core Space merging, https://arxiv.org/abs/2509.17786), never on
n x d matrices. A method is one function under ``register_combination``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from sharespace.errors import MismatchError, OptionError
from sharespace.linalg.precision import compute_dtype, tolerance
from sharespace.mixture_names import DEFAULT_COMBINATION, mixture_name
from sharespace.options import Limits, OptionType, check_option
from sharespace.subspace.adapter import Provenance
from sharespace.subspace.coefficients import CoefficientPair, Coefficients, PerTask, compact
from sharespace.subspace.layer import LayerSubspace, group_size, tensor_bytes
from sharespace.subspace.naming import COMPONENTS
from sharespace.subspace.state import (
    Ledger,
    ShareModel,
    Task,
    check_new_names,
    refuse_overflow,
)

COMBINE = "combine"
"""Event of a ledger: what the parts of a combination had lost, and what its own cast took."""

COMBINED = "combined"
"""``Provenance.format`` of a combination."""

TIES_DENSITY = 0.2
"""Fraction of a core's entries that TIES keeps where nothing else is said, as its paper does."""

CombinationFunction: TypeAlias = Callable[..., Tensor]
"""Cores of one module, float64 [tasks, a, b], multiplied by their weights, and the method's options
by name -> the combined core, float64 [a, b]."""

_Function = TypeVar("_Function", bound=CombinationFunction)


@dataclass(frozen=True)
class CombinationMethod:
    """How the cores of one module become one; see ``register_combination``."""

    name: str
    paper: str
    """Address of the paper that describes it."""
    function: CombinationFunction
    is_sum: bool = False
    """The result is the sum of the weighed cores: it is made of the stored numbers alone, and the
    parts' bounds add up to its bound."""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that it takes."""
        return tuple(inspect.signature(self.function).parameters)[1:]


_METHODS: dict[str, CombinationMethod] = {}


def register_combination(
    name: str, *, paper: str, is_sum: bool = False
) -> Callable[[_Function], _Function]:
    """Make a function known as a combination method: a decorator.

    The function gets the weighed cores w_i C_i of one module, float64 [tasks, a, b], in orthonormal
    coordinates that hold all of the tasks, the strongest direction first; further parameters are
    options, each with a default. It returns the combined core, float64 [a, b].

    Args:
        name: what users call it.
        paper: address of the paper that describes it.
        is_sum: it adds the cores up and does nothing else.

    Raises:
        OptionError: another function has that name.
    """

    def add(function: _Function) -> _Function:
        known = _METHODS.get(name)
        # The same function again is no mistake: notebooks run cells twice.
        if known is not None and known.function.__qualname__ != function.__qualname__:
            raise OptionError(
                f"combination method {name!r}",
                f"{known.function.__qualname__} has that name",
                "Choose another",
            )
        _METHODS[name] = CombinationMethod(name, paper, function, is_sum)
        return function

    return add


def combination_method(name: str) -> CombinationMethod:
    """The method of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in _METHODS:
        raise OptionError(
            f"method={name!r}", "is not known", f"Choose one of {', '.join(combination_names())}"
        )
    return _METHODS[name]


def combination_names() -> tuple[str, ...]:
    """Names of all combination methods."""
    return tuple(_METHODS)


@register_combination("linear", paper="https://arxiv.org/abs/2212.04089", is_sum=True)
def linear(cores: Tensor) -> Tensor:
    """The weighed sum of the updates, with the weights as they are given."""
    return cores.sum(0)


@register_combination("task_arithmetic", paper="https://arxiv.org/abs/2212.04089", is_sum=True)
def task_arithmetic(cores: Tensor) -> Tensor:
    """The same sum under the name that Ilharco et al. and mergekit gave it."""
    return cores.sum(0)


@register_combination("ties", paper="https://arxiv.org/abs/2306.01708")
def ties(cores: Tensor, density: float = TIES_DENSITY) -> Tensor:
    """TIES: trim each core to its largest entries, elect a sign for each entry, and average the
    tasks that have it. Signs are elected among the weighed cores, so a negative weight votes
    against its task's direction."""
    check_option("density", density, OptionType(float), Limits(above=0, most=1))
    trimmed = torch.stack([_largest(core, density) for core in cores])
    sign = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0)
    agreeing = trimmed.sign() == sign
    return (trimmed * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


def _largest(core: Tensor, density: float) -> Tensor:
    """The core with all but its largest entries set to 0; at least one stays."""
    count = max(1, int(density * core.numel()))
    trimmed = torch.zeros_like(core)
    places = core.abs().flatten().topk(min(count, core.numel())).indices
    trimmed.view(-1)[places] = core.flatten()[places]
    return trimmed


@dataclass(frozen=True)
class Combination:
    """Which tasks are combined, and how.

    Raises:
        OptionError: no task, a weight or scale that is not a finite number, an unknown method, an
            option that the method does not have, or ``heads`` of a task that is not combined.
    """

    weights: Mapping[str, float]
    """Task -> weight; negative ones subtract."""
    method: str = DEFAULT_COMBINATION
    scales: Mapping[str, float] = field(default_factory=dict)
    """Pattern for names of layers -> factor of all weights there; the first that matches counts."""
    heads: str | None = None
    """Task whose head, labels and tokenizer the combination has; None: they must be the same."""
    options: Mapping[str, float] = field(default_factory=dict)
    """Options of the method, by name."""

    def __post_init__(self) -> None:
        method = combination_method(self.method)
        if not self.weights:
            raise OptionError("weights", "there are none", "Give a weight for each task: NAME=X")
        _check_numbers("weight", self.weights)
        _check_numbers("scale", self.scales)
        for name in self.options:
            if name not in method.options:
                known = ", ".join(method.options) or "none"
                raise OptionError(
                    f"option {name!r}",
                    f"method {self.method!r} does not have it",
                    f"It has {known}",
                )
        if self.heads is not None and self.heads not in self.weights:
            known = ", ".join(map(repr, self.weights))
            raise OptionError(f"heads={self.heads!r}", "is not combined", f"Choose one of {known}")
        for name in ("weights", "scales", "options"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def source(self) -> str:
        """What ``Provenance.source`` says: the method, and the parts by their mixture's name."""
        scales = "".join(f", {pattern} x {scale:g}" for pattern, scale in self.scales.items())
        return f"{self.method} {mixture_name(self.weights)}{scales}"

    def weight(self, task: str, module: str) -> float:
        """The weight of a task in one layer."""
        scale = next((s for p, s in self.scales.items() if fnmatchcase(module, p)), 1.0)
        return float(self.weights[task]) * scale


def _check_numbers(what: str, numbers: Mapping[str, float]) -> None:
    for name, number in numbers.items():
        if isinstance(number, float) and not math.isfinite(number):
            why = f"{number} is not a finite number"
            raise OptionError(f"{what} of {name!r}", why, "Give one such as 0.7")
        check_option(f"{what} of {name!r}", number, OptionType(float), Limits())


def with_combination(model: ShareModel, combination: Combination, name: str) -> ShareModel:
    """The model with the combination as a task more, the last; see ``combined_task``.

    Raises:
        TaskExistsError: there is a task of that name.
        OptionError: no new task may have that name.
        Exception: as ``combined_task`` does.
    """
    check_new_names([name], model.tasks)
    task = combined_task(model, combination, name)
    return model.with_tasks([*model.tasks.values(), task])


def combined_task(
    model: ShareModel, combination: Combination, name: str, dtype: torch.dtype | None = None
) -> Task:
    """The combination as a task in the model's bases, which stay as they are.

    Args:
        model: has the tasks.
        combination: which of them, and how.
        name: of the new task.
        dtype: of its coefficients; None: that of the model.

    Returns:
        A task whose ledger bounds its error against the same combination of the original adapters
        where the method is a sum, and against that of the stored tasks otherwise.

    Raises:
        TaskNotFoundError: the model has no such task.
        MismatchError: heads, labels or tokenizers differ, and nothing says whose to take.
        OptionError: a pattern matches no layer, or a number becomes too large for the dtype.
    """
    parts = {task: stored_task(model, task) for task in combination.weights}
    dtype = dtype or model.dtype
    carried = carried_task(parts, combination.heads)
    modules = list(dict.fromkeys(m for task in parts.values() for m in task.coefficients))
    _check_patterns(combination.scales, modules)
    coefficients: dict[str, Coefficients] = {}
    norms, lost = [], {}
    for module in modules:
        layer = model.layers[module]
        values = [
            (combination.weight(task, module), part.coefficients[module])
            for task, part in parts.items()
            if module in part.coefficients
        ]
        exact = _combined(layer, values, combination)
        stored = exact.cast(dtype)
        norm, lost[module] = _sizes(layer, exact, stored)
        norms.append(norm)
        coefficients[module] = stored
    refuse_overflow(name, lost, dtype)
    inherited = _inherited(parts, combination, modules)
    own = torch.tensor([[lost[m]] for m in modules], dtype=torch.float64)
    truncations = torch.cat([inherited, own.reshape(-1, 1)], dim=1)
    ledger = Ledger(
        tuple(modules),
        torch.tensor(norms, dtype=torch.float64),
        truncations,
        (COMBINE,) * truncations.shape[1],
    )
    return replace(
        carried,
        name=name,
        coefficients=coefficients,
        ledger=ledger,
        provenance=Provenance(COMBINED, combination.source),
        adapter_bytes=_adapter_bytes(model, coefficients, carried, dtype),
        started_from={},
    )


def stored_task(model: ShareModel, name: str) -> Task:
    """A task, read without being remembered where it is stored: thousands may pass by.

    Raises:
        TaskNotFoundError: there is none of that name.
    """
    if name not in model.tasks:
        return model.task(name)  # This raises the error.
    peek: Callable[[str], Task] = getattr(model.tasks, "peek", model.tasks.__getitem__)
    return peek(name)


def carried_task(parts: Mapping[str, Task], heads: str | None) -> Task:
    """The part whose head, labels, tokenizer and configuration a combination has.

    Args:
        parts: the tasks that are combined.
        heads: one of them; None: all must carry the same.

    Raises:
        MismatchError: they differ, and ``heads`` is None; or some of them are of a pipeline's
            components and others are not.
    """
    first, *others = parts
    owner = parts[first if heads is None else heads]
    for other in others if heads is None else ():
        _refuse_differing(owner, parts[other])
    if heads is None:
        # A task without names for its classes does not contradict one that has them.
        owner = replace(owner, labels=next((t.labels for t in parts.values() if t.labels), ()))
    components = [part.config.get(COMPONENTS) for part in parts.values()]
    if any(components):
        lists = [c for c in components if isinstance(c, list | tuple) and c]
        if len(lists) < len(components):
            raise MismatchError(
                "tasks to combine",
                "some are of a pipeline's components and others of a model alone",
                "Combine tasks of one kind",
            )
        union = sorted({str(component) for some in lists for component in some})
        owner = replace(owner, config={**owner.config, COMPONENTS: union})
    return owner


def _refuse_differing(first: Task, second: Task) -> None:
    names = f"tasks {first.name!r} and {second.name!r}"
    remedy = "Say whose the combination has: heads=NAME (--heads NAME)"
    if not _same_tensors(first.kept, second.kept):
        raise MismatchError(names, "their heads, or what else they carry, differ", remedy)
    if not _same_tensors(first.files, second.files):
        raise MismatchError(names, "their tokenizers or chat templates differ", remedy)
    if first.labels and second.labels and first.labels != second.labels:
        raise MismatchError(names, "the names of their classes differ", remedy)


def _same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether both have the same tensors, bit for bit but for the dtype's NaN."""
    if first is second:
        return True
    if set(first) != set(second):
        return False
    pairs = ((first[key], second[key]) for key in first)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def _check_patterns(scales: Mapping[str, float], modules: Sequence[str]) -> None:
    for pattern in scales:
        if not any(fnmatchcase(module, pattern) for module in modules):
            few = ", ".join(modules[:2])
            raise OptionError(
                f"scale of {pattern!r}",
                "no layer of these tasks matches it",
                f"They have {few} ...",
            )


def _combined(
    layer: LayerSubspace, values: list[tuple[float, Coefficients]], combination: Combination
) -> Coefficients:
    """One module's combination, float64."""
    # A part of weight 0 would add columns of zeros; but something must be left to add up.
    values = [(w, value) for w, value in values if w] or values[:1]
    if combination_method(combination.method).is_sum:
        return _weighed_sum(layer, values)
    return _in_core_space(layer, values, combination)


def _weighed_sum(layer: LayerSubspace, values: list[tuple[float, Coefficients]]) -> Coefficients:
    """sum_i w_i dW_i: factors side by side, or one core where these would be wider."""
    if all(value.is_shared for _, value in values):
        offset, home = _home(layer, [value for _, value in values])
        pairs = [
            (
                w,
                value.within(home.k).exact_factors(home.k)
                if offset
                else value.exact_factors(home.k),
            )
            for w, value in values
        ]
        left = torch.cat([w * e.double() for w, (e, _) in pairs], dim=1)
        right = torch.cat([f.double() for _, (_, f) in pairs], dim=1)
        return compact(left, right, torch.float64).placed(offset or (0, 0), layer.k)
    sides = [(w, *_in_module(layer, value)) for w, value in values]
    left = torch.cat([w * up for w, up, _ in sides], dim=1)
    right = torch.cat([down for _, _, down in sides], dim=1)
    if left.shape[1] > min(left.shape[0], right.shape[0]):
        left, right = _narrowed(left, right)
    return PerTask(left, right)


def _home(
    layer: LayerSubspace, values: Sequence[Coefficients]
) -> tuple[tuple[int, int] | None, LayerSubspace]:
    """The offset and the subspace that all lie in; None and the whole layer where there is none."""
    offsets = {v.offset if v.subspace_in(layer) is not None else None for v in values}
    offset = offsets.pop() if len(offsets) == 1 else None
    if offset is None:
        return None, layer
    k = group_size(layer, offset)
    return (None, layer) if k is None else (offset, layer.subspace_at(offset, k))


def _in_module(layer: LayerSubspace, value: Coefficients) -> CoefficientPair:
    """Factors n x r and d x r of the update itself, float64."""
    left, right = value.factors()
    if not value.is_shared:
        return left.double(), right.double()
    return layer.left_basis.double() @ left.double(), layer.right_basis.double() @ right.double()


def _narrowed(left: Tensor, right: Tensor) -> CoefficientPair:
    """The same product with as many columns as its rank."""
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right)
    u, v = _split(r_left @ r_right.mT, torch.finfo(torch.float64).eps * len(r_left))
    return q_left @ u, q_right @ v


def _split(matrix: Tensor, rounding: float) -> CoefficientPair:
    """Two balanced factors of a matrix, without what is rounding; at least one column."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = max(1, int((s > rounding * s[:1]).sum()))
    root = s[:rank].sqrt()
    return u[:, :rank] * root, vh[:rank].mT * root


def _in_core_space(
    layer: LayerSubspace, values: list[tuple[float, Coefficients]], combination: Combination
) -> Coefficients:
    """The method's core of the tasks' cores, in the leading directions of all of them.

    The coordinates depend on the updates alone, not on how the Share model stores them nor on its
    other tasks: the singular vectors of all updates side by side, and below each other.
    """
    shared = [value for _, value in values if value.is_shared]
    offset, home = _home(layer, shared) if shared else (None, layer)
    frame = _Frame.of(home, offset, [value for _, value in values])
    rounding = tolerance(compute_dtype(layer.left_basis.dtype))
    left = _directions(torch.cat(list(frame.cores), dim=1), rounding)
    right = _directions(torch.cat([core.mT for core in frame.cores], dim=1), rounding)
    weights = torch.tensor([w for w, _ in values], dtype=torch.float64)
    cores = weights[:, None, None] * (left.mT @ frame.cores @ right)
    method = combination_method(combination.method)
    core: Tensor = method.function(cores, **combination.options)
    u, v = _split(core, torch.finfo(torch.float64).eps * max(core.shape))
    if len(shared) < len(values):
        return PerTask(frame.left @ (left @ u), frame.right @ (right @ v))
    pair = frame.to_left @ (left @ u), frame.to_right @ (right @ v)
    return compact(*pair, torch.float64).placed(offset or (0, 0), layer.k)


def _directions(columns: Tensor, rounding: float) -> Tensor:
    """Left singular vectors of a matrix, the strongest first, without those that are rounding."""
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    leading: Tensor = u[:, : max(1, int((s > rounding * s[:1]).sum()))]
    return leading


@dataclass(frozen=True, eq=False)
class _Frame:
    """Orthonormal coordinates, float64, that hold the updates of all parts of one module."""

    left: Tensor
    """n x m."""
    right: Tensor
    """d x m'."""
    to_left: Tensor
    """k_left x m: from these coordinates to the directions of the parts' subspace."""
    to_right: Tensor
    """k_right x m'."""
    cores: Tensor
    """[tasks, m, m']."""

    @classmethod
    def of(
        cls, home: LayerSubspace, offset: tuple[int, int] | None, values: Sequence[Coefficients]
    ) -> _Frame:
        own = [value.factors() for value in values if not value.is_shared]
        lefts = [home.left_basis.double(), *(left.double() for left, _ in own)]
        rights = [home.right_basis.double(), *(right.double() for _, right in own)]
        q_left, r_left = torch.linalg.qr(torch.cat(lefts, dim=1))
        q_right, r_right = torch.linalg.qr(torch.cat(rights, dim=1))
        k_left, k_right = home.k
        cores, column = [], 0
        for value in values:
            if value.is_shared:
                placed = value.within(home.k) if offset else value
                turn = r_left[:, :k_left], r_right[:, :k_right]
                cores.append(turn[0] @ placed.core(home.k) @ turn[1].mT)
                continue
            rows = slice(k_left + column, k_left + column + value.rank)
            columns = slice(k_right + column, k_right + column + value.rank)
            cores.append(r_left[:, rows] @ r_right[:, columns].mT)
            column += value.rank
        # Not an inverse: bases of several groups may have directions in common.
        to_left = torch.linalg.pinv(r_left[:, :k_left])
        to_right = torch.linalg.pinv(r_right[:, :k_right])
        return cls(q_left, q_right, to_left, to_right, torch.stack(cores))


def _sizes(layer: LayerSubspace, exact: Coefficients, stored: Coefficients) -> tuple[float, float]:
    """Frobenius norms of an update, through its core or its factors, and of what a cast takes."""
    if exact.is_shared:
        left, right = layer.left_basis.double(), layer.right_basis.double()
        grams = left.mT @ left, right.mT @ right
        core = exact.core(layer.k)
        return _core_norm(core, *grams), _core_norm(core - stored.core(layer.k), *grams)
    (left, right), (cast_left, cast_right) = exact.factors(), stored.factors()
    left_lost, right_lost = left - cast_left.double(), right - cast_right.double()
    # P Q^T - P' Q'^T = (P - P') Q^T + P' (Q - Q')^T, without a difference of large products.
    both = torch.cat([left_lost, cast_left.double()], dim=1)
    lost = _product_norm(both, torch.cat([right, right_lost], dim=1))
    return _product_norm(left, right), lost


def _core_norm(core: Tensor, left_gram: Tensor, right_gram: Tensor) -> float:
    """|L C R^T| from C, L^T L and R^T R, whatever the inner products of the bases' columns."""
    energy = (left_gram @ core @ right_gram * core).sum()
    # Of NaN, which is what an infinite coefficient gives, ``max`` makes NaN again.
    return math.sqrt(max(float(energy), 0.0))


def _product_norm(left: Tensor, right: Tensor) -> float:
    """|P Q^T| without the n x d product."""
    if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
        return math.nan
    r_left = torch.linalg.qr(left.double(), mode="r")[1]
    r_right = torch.linalg.qr(right.double(), mode="r")[1]
    return float(torch.linalg.matrix_norm(r_left @ r_right.mT))


def _inherited(
    parts: Mapping[str, Task], combination: Combination, modules: Sequence[str]
) -> Tensor:
    """float64 [modules, columns]: bounds of the parts, times their weights, which add up.

    Nothing where the method is no sum: how far it moves with its parts has no bound.
    """
    columns = []
    for name, part in parts.items() if combination_method(combination.method).is_sum else ():
        bounds = dict(zip(part.ledger.modules, part.ledger.bounds.tolist(), strict=True))
        values = [
            abs(combination.weight(name, m)) * (bounds[m] if m in part.coefficients else 0.0)
            for m in modules
        ]
        column = torch.tensor(values, dtype=torch.float64)
        # One column would say that it is the error itself (``Ledger.measured``), not a bound.
        columns += [column] if part.ledger.measured else [column / 2, column / 2]
    return torch.stack(columns, 1) if columns else torch.zeros(len(modules), 0, dtype=torch.float64)


def _adapter_bytes(
    model: ShareModel, values: Mapping[str, Coefficients], carried: Task, dtype: torch.dtype
) -> int:
    """Bytes of the combination as a plain LoRA adapter."""
    numbers = sum(value.rank * model.layers[m].shape.sides for m, value in values.items())
    return numbers * dtype.itemsize + tensor_bytes(*(carried.kept[key] for key in carried.kept))
