"""Build one layer: read its updates from all adapters, choose its bases, express the tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.linalg.dimension import Dimension
from sharespace.linalg.precision import canonical_rounding, compute_dtype, usable_range
from sharespace.linalg.problem import BasisPair, UpdateProblem
from sharespace.linalg.truncated import orthonormal
from sharespace.linalg.updates import (
    CanonicalUpdates,
    canonicalise_stream,
    core_svd,
    seen_by,
    weights,
)
from sharespace.subspace.adapter import Adapter, LayerUpdate, ModuleShape
from sharespace.subspace.basis_method import BasisMethod, LayerTasks, Projection
from sharespace.subspace.basis_methods import basis_method
from sharespace.subspace.coefficients import Coefficients
from sharespace.subspace.layer import Certificate, LayerSubspace
from sharespace.subspace.state import BuildSettings


@dataclass(frozen=True, eq=False)
class LayerResult:
    """One layer of the model and its tasks' coefficients."""

    layer: LayerSubspace
    coefficients: Mapping[str, Coefficients]
    lost: Mapping[str, float]
    """Absolute norm of what each task lost."""
    norms: Mapping[str, float]
    """Task -> |dW_i|, the Frobenius norm of its update."""


@dataclass(frozen=True, eq=False)
class Build:
    """What every layer of a build needs to know."""

    settings: BuildSettings
    dimension: Dimension
    dtype: torch.dtype
    device: torch.device
    entry_norms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Task -> module -> norm, for tasks that entered before and keep the weight they had."""
    totals: Mapping[str, float] = field(default_factory=dict)
    """Under a byte budget: task -> 1 / |dW_i over all modules| at entry."""
    memory: int | None = None
    """Bytes that one layer of all adapters may take; what is larger is built out of core. None:
    ``build.DEFAULT_MEMORY``, and in memory all the same what cannot be built otherwise."""
    method: BasisMethod = field(init=False)
    """That of the settings. It travels with the build: unpickled in another process, it imports the
    module that registers it there."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", basis_method(self.settings.method))

    @property
    def itemsize(self) -> int:
        """Bytes of a stored number."""
        return torch.empty(0, dtype=self.dtype).element_size()


def read_pairs(
    adapters: Iterable[Adapter], module: str, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(scaling * B, A^T) of one module from every adapter, one after the other.

    Raises:
        CorruptAdapterError: a factor holds NaN or infinity.
    """
    for adapter in adapters:
        yield _checked_pair(adapter.name, module, adapter.layer(module), device)


def read_updates(
    adapters: Sequence[Adapter], module: str, device: torch.device
) -> CanonicalUpdates:
    """The updates of one module in canonical form; no more than a batch of factors in memory.

    Raises:
        CorruptAdapterError: a factor holds NaN or infinity, or numbers too large to compute with.
        UnsupportedAdapterError: an update is too small to compute with.
    """
    shape = adapters[0].shapes[module]
    ranks = [min(a.ranks[module], shape.out_features, shape.in_features) for a in adapters]
    dtype = compute_dtype(*(a.dtype for a in adapters))
    pairs = (balanced(*pair) for pair in read_pairs(adapters, module, device))
    updates = canonicalise_stream(pairs, ranks, dtype)
    refuse_extremes(adapters, module, updates.norms)
    return updates


def refuse_extremes(adapters: Sequence[Adapter], module: str, norms: Tensor) -> None:
    """Refuse updates that are too large or too small to compute with.

    Args:
        adapters: that adapt the module.
        module: its name.
        norms: [adapters], |dW_i| or an upper bound.

    Raises:
        CorruptAdapterError: one is too large.
        UnsupportedAdapterError: one is too small, and not zero.
    """
    for adapter, norm in zip(adapters, norms.tolist(), strict=True):
        _check_range(adapter.name, module, norm, compute_dtype(adapter.dtype))


def _check_range(name: str, module: str, norm: float, dtype: torch.dtype) -> None:
    least, most = usable_range(dtype)
    # Not only >, or NaN of an overflow would pass.
    if not norm <= most:
        raise CorruptAdapterError(
            f"adapter {name!r}, module {module!r}",
            f"its update holds numbers too large to compute with (about {norm:.0e})",
            "The training run diverged; use an earlier checkpoint",
        )
    if 0 < norm < least:
        raise UnsupportedAdapterError(
            f"adapter {name!r}, module {module!r}",
            f"its update is too small to compute with (about {norm:.0e})",
            "It changes nothing in the base model: leave the module out, or set its factor B to 0",
        )


def _checked_pair(
    name: str, module: str, update: LayerUpdate, device: torch.device
) -> tuple[Tensor, Tensor]:
    up, down = update.up.to(device), update.down.to(device)
    sizes = _size(up), _size(down)
    for size, label in zip(sizes, "BA", strict=True):
        if not math.isfinite(size):
            raise CorruptAdapterError(
                f"adapter {name!r}, module {module!r}",
                f"factor {label} holds NaN or infinity",
                "The training run diverged or the file is damaged; use an earlier checkpoint",
            )
    # 16-bit factors times a scaling would round: the scaling is applied in the compute dtype.
    wide = torch.promote_types(up.dtype, torch.float32)
    # The sizes are no norms of the update, but near enough to keep all products in range.
    scaled = abs(update.scaling) * sizes[0]
    _check_range(name, module, scaled * sizes[1], wide)
    least, most = usable_range(wide)
    if scaled == 0 or least < scaled < most:
        return up.to(wide) * update.scaling, down.to(wide).mT
    # Half of the scaling goes to A, because B alone would leave the range of the dtype.
    mantissa, exponent = math.frexp(update.scaling)
    up, down = up.to(wide) * mantissa, down.to(wide)
    return _times_power(up, exponent - exponent // 2), _times_power(down, exponent // 2).mT


def _size(factor: Tensor) -> float:
    """The norm of a factor, or its largest entry where that is tiny or huge; NaN or infinity where
    it holds either."""
    # The norm first, because it is many times as fast; it under- and overflows with its squares.
    norm = float(torch.linalg.vector_norm(factor, dtype=compute_dtype(factor.dtype)))
    return norm if _is_usual(norm) or not factor.numel() else float(factor.abs().amax())


def _is_usual(size: float) -> bool:
    """Whether squares of numbers of that size are far from the ends of float32."""
    return 1e-9 < size < 1e9


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of like size where one is tiny or huge; their product is the same.

    By a power of two, which rounds nothing.
    """
    sizes = _size(left), _size(right)
    if all(map(_is_usual, sizes)) or not all(sizes):
        return left, right
    shift = (math.frexp(sizes[1])[1] - math.frexp(sizes[0])[1]) // 2
    return _times_power(left, shift), _times_power(right, -shift)


def _times_power(factor: Tensor, exponent: int) -> Tensor:
    """factor * 2^exponent, without the overflow of a single step."""
    half = exponent // 2
    scaled: Tensor = factor * 2.0**half * 2.0 ** (exponent - half)
    return scaled


def read_problem(module: str, members: Sequence[Adapter], build: Build) -> UpdateProblem:
    """The updates of one module with their weights."""
    updates = read_updates(members, module, build.device)
    norms = updates.norms.clone()
    for i, adapter in enumerate(members):
        norms[i] = build.entry_norms.get(adapter.name, {}).get(module, norms[i])
    return UpdateProblem(updates, weights(norms), build.settings.p, build.settings.seed)


def build_layer(
    module: str, shape: ModuleShape, members: Sequence[Adapter], build: Build
) -> LayerResult:
    """One layer of a Share model from all the adapters that adapt it."""
    problem = read_problem(module, members, build)
    method, k = build.method, build.dimension.cap(module)
    # Factors are read a second time, after the updates: both at once would be in memory together.
    factors = list(read_pairs(members, module, build.device)) if method.needs_factors else []
    tasks = LayerTasks(problem, factors, build.settings.centred)
    bases = method.bases(tasks, k) if k else method.smallest_bases(tasks, build.dimension)
    layer = LayerSubspace(
        shape,
        stored_basis(bases.left, build.dtype),
        stored_basis(bases.right, build.dtype),
        cap=k,
    )
    result = method.project(tasks, layer)
    layer = replace(layer, certificate=_certificate(problem, bases, result))
    return by_name(members, layer, result, problem.updates.norms)


def by_name(
    members: Sequence[Adapter], layer: LayerSubspace, result: Projection, norms: Tensor
) -> LayerResult:
    """What was found of the tasks in their order, under their names.

    Args:
        norms: [tasks], |dW_i|.
    """
    names = [a.name for a in members]
    return LayerResult(
        layer,
        dict(zip(names, result.coefficients, strict=True)),
        dict(zip(names, result.lost.tolist(), strict=True)),
        dict(zip(names, norms.tolist(), strict=True)),
    )


def stored_basis(basis: Tensor, dtype: torch.dtype) -> Tensor:
    """A basis as it is kept: on the CPU, contiguous, in the stored dtype, and orthonormal to it."""
    if dtype == torch.float64 and basis.dtype != dtype:
        basis = orthonormal(basis.double())
    return basis.to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)


def _certificate(problem: UpdateProblem, bases: BasisPair, result: Projection) -> Certificate:
    """Of the stored bases, from what the projection measured, where it says all."""
    if problem.p is not None or result.outside is None:
        return certify(problem, bases)
    left, right = (result.outside.to(problem.weights) @ problem.weights.square()).tolist()
    return _rounded(problem, left, right, 0.0)


def certify(problem: UpdateProblem, bases: BasisPair) -> Certificate:
    """The certificate of bases for a problem, rounding of the compute dtype added."""
    lost = [0.0, 0.0, 0.0]
    for tasks, part in problem.updates.slices():
        sliced = replace(problem, updates=part, weights=problem.weights[tasks])
        lost = [x + y for x, y in zip(lost, _lost(sliced, bases), strict=True)]
    return _rounded(problem, *lost)


def _rounded(problem: UpdateProblem, left: float, right: float, tail: float) -> Certificate:
    rounding = canonical_rounding(problem.updates.left.dtype)
    # The updates themselves were rounded into canonical form: a bound must cover that, too.
    slack = rounding**2 * problem.total
    return Certificate(left * (1 + rounding) + slack, right * (1 + rounding) + slack, tail)


def _lost(problem: UpdateProblem, bases: BasisPair) -> tuple[float, float, float]:
    """Weighed energy outside the left basis, the right one, and in the cores beyond rank p."""
    left = seen_by(problem.updates, bases.left)
    right = seen_by(problem.updates.flipped, bases.right)
    tail = 0.0
    if problem.p is not None and problem.p < min(left.shape[1], left.shape[2], right.shape[2]):
        beyond = core_svd(left, problem.sigma.double(), right).tail(problem.p)
        tail = float((problem.weights.square() * beyond).sum())
    outside = _outside(problem, bases.left, left)
    return outside, _outside(problem.flipped, bases.right, right), tail


def _outside(problem: UpdateProblem, basis: Tensor, seen: Tensor) -> float:
    """Weighed energy outside a left basis; not as a difference, whose floor is eps of the total."""
    updates = problem.updates
    hidden = torch.addmm(updates.left.mT, updates.rows(seen), basis.mT, alpha=-1)
    squares = (hidden[:, None] @ hidden[..., None]).flatten()  # ``norm`` and ``vecdot`` copy it all
    energies = updates.blocks(updates.sigma.double().square() * squares.double())
    return float((problem.weights.square() * energies.sum(1)).sum())
