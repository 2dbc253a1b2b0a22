"""A router on disk: one safetensors file.

Tensors: ``means`` float64 [tasks, d] and ``scatters`` float64 [tasks, d (d + 1) / 2], the lower
triangles row by row. Header (``__metadata__``, all strings): ``format`` is ``sharespace.router``;
``version`` is ``1``; ``router`` is JSON with ``tasks`` (names), ``counts``, ``shrinkage`` and
``margin`` (null: never fall back); ``sha256`` (hex) is over the JSON's UTF-8 bytes, then the
tensors' bytes in the order given here. A reader MUST refuse another format, a newer version, and
a wrong sum.

What the router remembers of a task: count, mean and scatter of its features, never an input.

They are sufficient for a Gaussian per task. Pieces are put together by the parallel update of
Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances" (1979); all in float64.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from sharespace.errors import (
    CorruptStoreError,
    MismatchError,
    OptionError,
    SchemaVersionError,
    StoreError,
    StoreNotFoundError,
)
from sharespace.files import write_file
from sharespace.strict_json import parse_json

FORMAT = "sharespace.router"

VERSION = 1

_AGAIN = "Copy it again, or make the router again from the tasks' inputs"


@dataclass(frozen=True, eq=False)
class Contents:
    """What is written of a router."""

    tasks: Mapping[str, Statistics]
    shrinkage: float
    margin: float | None


def save(path: Path, contents: Contents) -> None:
    """Write the file aside, then move it into place.

    Raises:
        OptionError: there are no tasks to write.
        StoreError: the disk does not take it.
    """
    if not contents.tasks:
        raise OptionError("router", "it has no task to save", "Add one by with_task")
    tensors = _pack(list(contents.tasks.values()))
    router = json.dumps(
        {
            "tasks": list(contents.tasks),
            "counts": [s.count for s in contents.tasks.values()],
            "shrinkage": contents.shrinkage,
            "margin": contents.margin,
        }
    )
    header = {"format": FORMAT, "version": str(VERSION), "router": router}
    data = to_bytes(tensors, metadata={**header, "sha256": _digest(router, tensors)})
    try:
        write_file(path, data)
    except OSError as error:
        why = f"cannot be written: {error.strerror or error}"
        raise StoreError(str(path), why, "Check the folder and its permissions") from error


def load(path: Path) -> Contents:
    """Read and check the file.

    Raises:
        StoreNotFoundError, SchemaVersionError, CorruptStoreError, StoreError: see ``Router.load``.
    """
    metadata, tensors = _read(path)
    _check_header(path, metadata)
    router = metadata.get("router", "")
    if {"means", "scatters"} != set(tensors) or _digest(router, tensors) != metadata.get("sha256"):
        raise _corrupt(path, "its bytes are not the ones that were written (sha256 differs)")
    try:
        fields: Any = parse_json(router, ValueError)
        tasks = _unpack(fields["tasks"], fields["counts"], tensors)
        return Contents(tasks, float(fields["shrinkage"]), _margin(fields["margin"]))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _corrupt(path, f"its header does not fit its tensors ({error})") from error


def _pack(tasks: list[Statistics]) -> dict[str, Tensor]:
    rows, columns = torch.tril_indices(tasks[0].dimension, tasks[0].dimension)
    return {
        "means": torch.stack([s.mean for s in tasks]),
        "scatters": torch.stack([s.scatter[rows, columns] for s in tasks]),
    }


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


def _margin(value: Any) -> float | None:
    return None if value is None else float(value)


def _digest(router: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(router.encode("utf-8"))
    for name in ("means", "scatters"):
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


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
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "no format")
        raise _corrupt(path, f"not a router: the header says {found!r}, not {FORMAT!r}")
    version = metadata.get("version", "")
    if version != str(VERSION):
        why = f"version {version!r}, while this release reads {VERSION}"
        raise SchemaVersionError(str(path), why, "Upgrade sharespace")


def _corrupt(path: Path, why: str) -> CorruptStoreError:
    return CorruptStoreError(str(path), why, _AGAIN)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sufficient statistics of one task's features."""

    count: int
    """Inputs seen."""
    mean: Tensor
    """float64 [d]."""
    scatter: Tensor
    """float64 [d, d], exactly symmetric: sum over the inputs of (x - mean)(x - mean)^T."""

    def __post_init__(self) -> None:
        d = len(self.mean) if self.mean.ndim == 1 else 0
        fits = d > 0 and self.scatter.shape == (d, d) and self.count > 0
        if not fits or {self.mean.dtype, self.scatter.dtype} != {torch.float64}:
            why = (
                f"count {self.count}, mean {tuple(self.mean.shape)} {self.mean.dtype}, "
                f"scatter {tuple(self.scatter.shape)} {self.scatter.dtype}"
            )
            raise OptionError("statistics", why, "Make them with Statistics.from_features")

    @classmethod
    def from_features(cls, features: Tensor) -> Statistics:
        """Statistics of [inputs, d] features of any float dtype.

        Raises:
            OptionError: no inputs, not a matrix, or a value that is not finite.
        """
        if features.ndim != 2 or not features.numel():
            why = f"shape {tuple(features.shape)}, not [inputs, d]"
            raise OptionError("features", why, "Give one row for each input")
        if not bool(torch.isfinite(features).all()):
            raise OptionError("features", "not all are finite", "Look at the model and its inputs")
        x = features.detach().cpu().double()
        mean = x.mean(dim=0)
        centred = x - mean
        return cls(len(x), mean, _symmetric(centred.mT @ centred))

    @property
    def dimension(self) -> int:
        """d."""
        return len(self.mean)

    def add(self, other: Statistics) -> Statistics:
        """Statistics of both sets of inputs together.

        Raises:
            MismatchError: features of another dimension.
        """
        check_dimension("statistics", other.dimension, self.dimension)
        count = self.count + other.count
        apart = other.mean - self.mean
        mean = (self.count * self.mean + other.count * other.mean) / count
        between = torch.outer(apart, apart) * (self.count * other.count / count)
        return Statistics(count, mean, self.scatter + other.scatter + between)


def check_dimension(what: str, found: int, wanted: int) -> None:
    """Refuse features of another dimension.

    Raises:
        MismatchError: ``found`` is not ``wanted``.
    """
    if found != wanted:
        raise MismatchError(
            what,
            f"dimension {found}, while the router's features have {wanted}",
            "Take all features from the same base model, in the same way",
        )


def _symmetric(matrix: Tensor) -> Tensor:
    """The lower triangle, mirrored: a product is symmetric only up to rounding."""
    lower = matrix.tril()
    return lower + lower.tril(-1).mT
