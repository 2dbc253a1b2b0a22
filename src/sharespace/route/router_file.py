"""A router on disk: one safetensors file.

Tensors: ``means`` float64 [tasks, d] and ``scatters`` float64 [tasks, d (d + 1) / 2], the lower
triangles row by row. Header (``__metadata__``, all strings): ``format`` is ``sharespace.router``;
``version`` is ``1``; ``router`` is JSON with ``tasks`` (names), ``counts``, ``shrinkage`` and
``margin`` (null: never fall back); ``sha256`` (hex) is over the JSON's UTF-8 bytes, then the
tensors' bytes in the order given here. A reader MUST refuse another format, a newer version, and
a wrong sum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
)
from sharespace.files import write_file
from sharespace.route.features import Statistics
from sharespace.strict_json import parse_json

FORMAT = "sharespace.router"
VERSION = 1

_REMEDY = "Copy it again, or make the router again from the tasks' inputs"


@dataclass(frozen=True, eq=False)
class RouterContents:
    """The fields of a router that its file holds."""

    tasks: Mapping[str, Statistics]
    shrinkage: float
    margin: float | None


def save(path: Path, contents: RouterContents) -> None:
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


def load(path: Path) -> RouterContents:
    """Read and check the file.

    Raises:
        StoreNotFoundError: there is no such file.
        SchemaVersionError: it was written by a newer release.
        CorruptStoreError: it is no router, or its bytes have changed.
        StoreError: the file cannot be read.
    """
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
        return RouterContents(
            tasks, float(fields["shrinkage"]), None if margin is None else float(margin)
        )
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
