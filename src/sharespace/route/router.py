"""The nearest task by feature statistics: a linear discriminant, without training.

Each task is a Gaussian with its own mean and one covariance for all (Fisher's discriminant; as a
router of tasks and classes in continual learning: Goswami et al., FeCAM, arXiv 2309.14062;
McDonnell et al., RanPAC, arXiv 2307.02251). "None of the tasks" is one Gaussian over all inputs
seen, with their total covariance, so that the margin is a log-likelihood ratio (the relative
Mahalanobis distance of Ren et al., arXiv 2106.09022).

A few dozen inputs of each task are enough to find the nearest task. To tell that an input belongs
to none of them takes more: all tasks together should have seen about as many inputs as features
have dimensions, or many inputs of no task pass as one of theirs.

On disk a router is one safetensors file. Tensors: ``means`` float64 [tasks, d] and ``scatters``
float64 [tasks, d (d + 1) / 2], the lower triangles row by row. Header (``__metadata__``, all
strings): ``format`` is ``sharespace.router``; ``version`` is ``1``; ``router`` is JSON with
``tasks`` (names), ``counts``, ``shrinkage`` and ``margin`` (null: never fall back); ``sha256``
(hex) is over the JSON's UTF-8 bytes, then the tensors' bytes in the order given here. A reader MUST
refuse another format, a newer version, and a wrong sum.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from sharespace.errors import (
    CorruptStoreError,
    OptionError,
    SchemaVersionError,
    StoreError,
    StoreNotFoundError,
    TaskExistsError,
    TaskNotFoundError,
)
from sharespace.files import write_file
from sharespace.options import check_options, option
from sharespace.route.features import Statistics, check_dimension
from sharespace.strict_json import parse_json

FORMAT = "sharespace.router"
VERSION = 1

_REMEDY = "Copy it again, or make the router again from the tasks' inputs"


@dataclass(frozen=True, eq=False)
class Router:
    """Statistics of every task, and the margin below which an input goes to the base model.

    A router is never changed: ``with_task``, ``without_task`` and ``with_fallback_rate`` give a new
    one, so that a router in use keeps its answers.
    """

    tasks: Mapping[str, Statistics] = field(default_factory=dict)
    """Task -> statistics; the order changes nothing but the columns of the scores."""
    shrinkage: float = option(0.01, above=0, most=1)
    """Fraction of each covariance that is replaced by a multiple of the identity with the same
    trace (Ledoit & Wolf's form with a fixed intensity); 1 compares plain distances."""
    margin: float | None = None
    """In nats: an input whose best task is less than this above "none of them" goes to the base
    model; None: none does. See ``with_fallback_rate``."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.margin is not None and not math.isfinite(self.margin):
            why = "is not finite, and JSON has no such number"
            raise OptionError(f"margin={self.margin}", why, "Give a number, or None: no fallback")
        object.__setattr__(self, "tasks", MappingProxyType(dict(self.tasks)))
        for name, statistics in self.tasks.items():
            check_dimension(f"task {name!r}", statistics.dimension, self.dimension)

    @property
    def dimension(self) -> int:
        """Length of a feature vector; 0 without tasks."""
        return next((s.dimension for s in self.tasks.values()), 0)

    def with_task(self, name: str, statistics: Statistics) -> Router:
        """The router with one more task; what it knows of the others is not touched.

        Args:
            name: the task's name, as the Share model has it.
            statistics: of the task's training inputs, ``Statistics.from_features``.

        Raises:
            TaskExistsError: the name is empty, or there is such a task.
            MismatchError: the features have another dimension.
        """
        if not name or name in self.tasks:
            why = "there is a task of that name already" if name else "a name must not be empty"
            raise TaskExistsError(f"task {name!r}", why, "Give it another name")
        return replace(self, tasks={**self.tasks, name: statistics})

    def without_task(self, name: str) -> Router:
        """The router as if the task had never come, to the last bit.

        Args:
            name: the task's name.

        Raises:
            TaskNotFoundError: there is none of that name.
        """
        if name not in self.tasks:
            known = ", ".join(map(repr, self.tasks)) or "none"
            raise TaskNotFoundError(f"task {name!r}", "not in the router", f"Known: {known}")
        return replace(self, tasks={n: s for n, s in self.tasks.items() if n != name})

    def with_fallback_rate(self, rate: float, features: Tensor) -> Router:
        """The router with the margin at which this part of the tasks' own inputs is given up.

        As tasks come, the Gaussian of "none of them" becomes wider, and the same margin gives up
        slowly fewer inputs. So a margin needs no old inputs to stay safe; where some are at hand,
        set it again.

        Args:
            rate: in [0, 1), for example 0.05.
            features: [inputs, d] of the tasks' inputs that their statistics have not seen (on
                those seen the margin comes out too high); as many of each task as are to count.

        Raises:
            OptionError: the rate is not in [0, 1), or there are no inputs.
            MismatchError: the features have another dimension.
        """
        return replace(self, margin=margin_for(self.route(features).margins, rate))

    def route(self, features: Tensor) -> RoutedInputs:
        """The nearest task of each input; task priors are equal.

        Args:
            features: [inputs, d], from ``route.features`` with the base model and pooling that
                the statistics were made with.

        Raises:
            OptionError: there are no tasks or no inputs, or features are not finite.
            MismatchError: the features have another dimension.
        """
        if not self.tasks:
            raise OptionError("router", "it has no task", "Add one by with_task")
        if features.ndim != 2 or not bool(torch.isfinite(features).all()):
            why = f"shape {tuple(features.shape)} or a value is not finite"
            raise OptionError("features", why, "Give finite features, one row for each input")
        check_dimension("features", features.shape[1], self.dimension)
        x = features.detach().cpu().double()
        none = self._background.log_densities(x)[:, 0]
        return choose(tuple(self.tasks), self._nearest.log_densities(x), none, self.margin)

    def save(self, path: str | Path) -> None:
        """Write the router to one safetensors file, whole or not at all.

        Args:
            path: of the file; one that is there is replaced.

        Raises:
            OptionError: the router has no task.
            StoreError: the file cannot be written.
        """
        _save(Path(path), self)

    @classmethod
    def load(cls, path: str | Path) -> Router:
        """Read a router; it gives the same scores to the last bit.

        Args:
            path: of the file that ``save`` wrote.

        Raises:
            StoreNotFoundError: there is no such file.
            SchemaVersionError: it was written by a newer release.
            CorruptStoreError: it is no router, or its bytes have changed.
            StoreError: the file cannot be read.
        """
        return _load(Path(path))

    @property
    def _sorted(self) -> list[Statistics]:
        """The statistics by name: floating-point sums depend on their order, the router must not.

        This is also what makes ``without_task`` exact: nothing is subtracted, all is summed anew.
        """
        return [self.tasks[name] for name in sorted(self.tasks)]

    @cached_property
    def _nearest(self) -> _Gaussians:
        """One Gaussian for each task, all with the covariance within the tasks."""
        total = torch.stack([s.scatter for s in self._sorted]).sum(dim=0)
        count = sum(s.count for s in self._sorted)
        means = torch.stack([s.mean for s in self.tasks.values()])
        return _Gaussians.of(means, total / count, self.shrinkage)

    @cached_property
    def _background(self) -> _Gaussians:
        """One Gaussian over the inputs of all tasks."""
        first, *rest = self._sorted
        for statistics in rest:
            first = first.add(statistics)
        return _Gaussians.of(first.mean[None], first.scatter / first.count, self.shrinkage)


@dataclass(frozen=True, eq=False)
class RoutedInputs:
    """Which task each input goes to, and how clear that is."""

    candidates: tuple[str, ...]
    """The tasks that were compared; the columns of ``scores``."""
    tasks: tuple[str | None, ...]
    """For each input its task; None: below the margin, so the base model answers."""
    scores: Tensor
    """float64 [inputs, candidates]: higher is nearer."""
    margins: Tensor
    """float64 [inputs]: the best score less that of "none of them"."""

    @property
    def nearest(self) -> tuple[str, ...]:
        """For each input the best candidate, whatever the margin."""
        return tuple(self.candidates[i] for i in self.scores.argmax(dim=1).tolist())

    @property
    def fallback_rate(self) -> float:
        """Fraction of the inputs that go to the base model."""
        return self.tasks.count(None) / len(self.tasks)


def choose(
    candidates: Sequence[str], scores: Tensor, none: Tensor, margin: float | None
) -> RoutedInputs:
    """The best candidate of each input, or None where it leads "none of them" by less than margin.

    Args:
        candidates: names of the columns; of equal scores the first wins.
        scores: [inputs, candidates].
        none: [inputs], the score of "none of them".
        margin: None: no input goes to the base model.

    Raises:
        OptionError: there are no candidates or no inputs.
    """
    if not candidates or not len(scores):
        what = "tasks" if not candidates else "inputs"
        raise OptionError("routing", f"there are no {what}", f"Give at least one of the {what}")
    best, index = scores.max(dim=1)
    margins = best - none
    # >= and not >: margin_for gives the margin of an input that is to stay.
    trusted = [margin is None or m >= margin for m in margins.tolist()]
    tasks = [candidates[i] if t else None for i, t in zip(index.tolist(), trusted, strict=True)]
    return RoutedInputs(tuple(candidates), tuple(tasks), scores, margins)


def margin_for(margins: Tensor, fallback_rate: float) -> float:
    """The margin that sends a given fraction of these inputs, and no more, to the base model.

    Args:
        margins: of inputs that do belong to the tasks, and that the statistics have not seen.
        fallback_rate: in [0, 1); with 0 all of these inputs stay with their tasks.

    Raises:
        OptionError: the rate is not in [0, 1), or there are no inputs.
    """
    if not 0 <= fallback_rate < 1:
        raise OptionError(f"fallback rate {fallback_rate}", "not in [0, 1)", "For example 0.05")
    if not len(margins):
        raise OptionError("margins", "there are no inputs", "Give inputs that belong to the tasks")
    return float(margins.sort().values[int(fallback_rate * len(margins))])


@dataclass(frozen=True, eq=False)
class _Gaussians:
    """Gaussians with one covariance in common, in coordinates where it is the identity."""

    whitening: Tensor
    """float64 [d, d], lower: covariance = whitening @ whitening.T."""
    means: Tensor
    """float64 [Gaussians, d], whitened."""

    @classmethod
    def of(cls, means: Tensor, covariance: Tensor, shrinkage: float) -> _Gaussians:
        whitening = torch.linalg.cholesky(_shrunk(covariance, shrinkage))
        return cls(whitening, _whitened(whitening, means))

    def log_densities(self, x: Tensor) -> Tensor:
        """[inputs, Gaussians], without the constant that all Gaussians of a dimension share."""
        # By differences: |x|^2 + |m|^2 - 2 x.m, the default for more than 25 rows, cancels where
        # an input is far away, and would make a score depend on how many inputs came with it.
        apart = torch.cdist(
            _whitened(self.whitening, x), self.means, compute_mode="donot_use_mm_for_euclid_dist"
        )
        half_log_det = self.whitening.diagonal().log().sum()
        return -apart.square() / 2 - half_log_det


def _shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    # The scatter of a single input is 0; any positive scale then makes a usable distance.
    scale = float(covariance.diagonal().mean()) or 1.0
    eye = torch.eye(len(covariance), dtype=covariance.dtype)
    return (1 - shrinkage) * covariance + shrinkage * scale * eye


def _whitened(whitening: Tensor, rows: Tensor) -> Tensor:
    solved: Tensor = torch.linalg.solve_triangular(whitening, rows.mT, upper=False)
    return solved.mT


def _save(path: Path, router: Router) -> None:
    """Write the file aside, then move it into place; see ``Router.save``."""
    if not router.tasks:
        raise OptionError("router", "it has no task to save", "Add one by with_task")
    tensors = _pack(list(router.tasks.values()))
    fields = {
        "tasks": list(router.tasks),
        "counts": [s.count for s in router.tasks.values()],
        "shrinkage": router.shrinkage,
        "margin": router.margin,
    }
    text = json.dumps(fields)
    header = {"format": FORMAT, "version": str(VERSION), "router": text}
    data = to_bytes(tensors, metadata={**header, "sha256": _digest(text, tensors)})
    try:
        write_file(path, data)
    except OSError as error:
        why = f"cannot be written: {error.strerror or error}"
        raise StoreError(str(path), why, "Check the folder and its permissions") from error


def _pack(tasks: list[Statistics]) -> dict[str, Tensor]:
    # A scatter is symmetric to the bit, so half of it is enough: 0.6 MB a task at d = 384.
    rows, columns = torch.tril_indices(tasks[0].dimension, tasks[0].dimension)
    return {
        "means": torch.stack([s.mean for s in tasks]),
        "scatters": torch.stack([s.scatter[rows, columns] for s in tasks]),
    }


def _digest(router: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(router.encode("utf-8"))
    for name in ("means", "scatters"):
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _load(path: Path) -> Router:
    """Read and check the file; see ``Router.load``."""
    metadata, tensors = _read(path)
    _check_header(path, metadata)
    router = metadata.get("router", "")
    # The sum is checked before anything is parsed: what follows meets only what was written.
    if {"means", "scatters"} != set(tensors) or _digest(router, tensors) != metadata.get("sha256"):
        raise _corrupt(path, "its bytes are not the ones that were written (sha256 differs)")
    try:
        fields = parse_json(router, ValueError)
        if not isinstance(fields, dict):
            raise ValueError("not an object")
        tasks = _unpack(fields["tasks"], fields["counts"], tensors)
        margin = fields["margin"]
        shrinkage = float(fields["shrinkage"])
        return Router(tasks, shrinkage, None if margin is None else float(margin))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _corrupt(path, f"its header does not fit its tensors ({error})") from error


def _read(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    if not path.exists():
        raise StoreNotFoundError(str(path), "there is no such file", "Look at the path")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except SafetensorError as error:
        raise _corrupt(path, f"not a valid safetensors file ({error})") from error
    except OSError as error:
        why = f"cannot be read: {error.strerror or error}"
        raise StoreError(str(path), why, "Check that it is a file that you may read") from error


def _check_header(path: Path, metadata: Mapping[str, str]) -> None:
    written = metadata.get("format", "no format")
    if written != FORMAT:
        raise _corrupt(path, f"not a router: the header says {written!r}, not {FORMAT!r}")
    version = metadata.get("version", "")
    if version != str(VERSION):
        why = f"version {version!r}, while this release reads {VERSION}"
        raise SchemaVersionError(str(path), why, "Upgrade sharespace")


def _unpack(
    names: list[str], counts: list[int], tensors: Mapping[str, Tensor]
) -> dict[str, Statistics]:
    means, triangles = tensors["means"], tensors["scatters"]
    rows, columns = torch.tril_indices(means.shape[1], means.shape[1])
    tasks = {}
    for name, count, mean, triangle in zip(names, counts, means, triangles, strict=True):
        scatter = torch.zeros(len(mean), len(mean), dtype=triangle.dtype)
        scatter[rows, columns] = triangle
        scatter[columns, rows] = triangle
        tasks[str(name)] = Statistics(int(count), mean, scatter)
    return tasks


def _corrupt(path: Path, why: str) -> CorruptStoreError:
    return CorruptStoreError(str(path), why, _REMEDY)
