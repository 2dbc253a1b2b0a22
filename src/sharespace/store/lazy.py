"""Mappings that read a store's files when they are asked, and remember where they came from.

A model of thousands of tasks is opened without reading one of them; and what was not replaced since
is committed again as the files that it came from, unread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sharespace.store.layout import Content, FileRef, LayerEntry, TaskEntry, corrupt
from sharespace.store.objects import OpenedFile, StoredFile, check_file
from sharespace.store.taskfile import read_task
from sharespace.subspace.adapter import is_companion
from sharespace.subspace.base_digest import sample_shape
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import ShareModel, Task

LEFT_BASIS = "left_basis"
RIGHT_BASIS = "right_basis"
SAMPLE_SUFFIX = ".rows"


def lazy_model(root: Path, content: Content, *, verify: bool) -> ShareModel:
    """The model of a version; reads no tensor file yet."""
    return ShareModel(
        base=content.base,
        settings=content.settings,
        dtype=content.dtype,
        layers=StoredLayers(root, content, verify=verify),
        tasks=StoredTasks(root, content, verify=verify),
        base_samples=_stored(StoredSamples, root, content.base_samples, verify=verify),
    )


def _stored(
    kind: type[StoredTensors], root: Path, ref: FileRef | None, *, verify: bool
) -> Mapping[str, Tensor]:
    return {} if ref is None else kind(root, ref, verify=verify)


class StoredLayers(Mapping[str, LayerSubspace]):
    """The subspaces; the basis file is opened at the first access and its pages read on use."""

    def __init__(self, root: Path, content: Content, *, verify: bool) -> None:
        self.stored = StoredFile(root, content.basis)
        self.entries = {entry.module: entry for entry in content.layers}
        self.dtype = content.dtype
        self._verify = verify
        self._opened: OpenedFile | None = None
        self._cache: dict[str, LayerSubspace] = {}

    def _open(self) -> OpenedFile:
        if self._opened is None:
            opened = OpenedFile(self.stored.root, self.stored.ref, hashed=self._verify)
            check_basis_names(opened, self.entries)
            self._opened = opened
        return self._opened

    def __getitem__(self, module: str) -> LayerSubspace:
        if module not in self._cache:
            self._cache[module] = read_layer(self._open(), self.entries[module], self.dtype)
        return self._cache[module]

    def __contains__(self, module: object) -> bool:
        return module in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def basis_names(module: str) -> tuple[str, str]:
    """Keys of a module's bases in the basis file."""
    return f"{module}.{LEFT_BASIS}", f"{module}.{RIGHT_BASIS}"


def check_basis_names(opened: OpenedFile, layers: Iterable[str]) -> None:
    """Refuse a basis file that has not exactly the tensors of these modules.

    Raises:
        CorruptStoreError: it has others, or lacks some.
    """
    wanted = {name for module in layers for name in basis_names(module)}
    differing = wanted.symmetric_difference(opened.names)
    if differing:
        raise corrupt(str(opened.path), f"missing or unknown tensors: {sorted(differing)[:5]}")


def read_layer(opened: OpenedFile, entry: LayerEntry, dtype: torch.dtype) -> LayerSubspace:
    """One module's subspace from the basis file.

    Raises:
        CorruptStoreError: shapes or dtypes are not those of the manifest.
    """
    left, right = (opened.matrix(name, dtype) for name in basis_names(entry.module))
    wanted = [(entry.shape.out_features, entry.k[0]), (entry.shape.in_features, entry.k[1])]
    shapes = [tuple(left.shape), tuple(right.shape)]
    if shapes != wanted:
        raise corrupt(str(opened.path), f"module {entry.module!r}: {shapes} instead of {wanted}")
    return LayerSubspace(
        entry.shape, left, right, entry.cap, entry.certificate, entry.streamed, entry.groups
    )


class StoredTasks(Mapping[str, Task]):
    """The tasks; each task's file is read and checked at the first access."""

    def __init__(self, root: Path, content: Content, *, verify: bool) -> None:
        self.root = root
        self.entries = {entry.name: entry for entry in content.tasks}
        self.layers = {entry.module: entry for entry in content.layers}
        self.dtype = content.dtype
        self._basis = content.basis
        self._verify = verify
        self._cache: dict[str, Task] = {}

    def __getitem__(self, name: str) -> Task:
        if name not in self._cache:
            self._cache[name] = self._load(self.entries[name])
        return self._cache[name]

    def peek(self, name: str) -> Task:
        """The task, read anew unless it was read before; it is not remembered."""
        return self._cache[name] if name in self._cache else self._load(self.entries[name])

    def _load(self, entry: TaskEntry) -> Task:
        if not self._cache:
            # Reading adds zero rows up to k: with a k of billions in a forged manifest that would
            # fill the memory. A basis file of the size that k needs shows that k is real.
            check_file(self.root, self._basis, hashed=False)
        opened = OpenedFile(self.root, entry.coefficients, hashed=self._verify)
        task = read_task(opened, entry.name, self.layers, self.dtype)
        return replace(
            task,
            kept=_stored(StoredTensors, self.root, entry.kept, verify=self._verify),
            files=_stored(StoredFiles, self.root, entry.files, verify=self._verify),
            labels=entry.labels,
            started_from=dict(entry.started_from),
        )

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class StoredTensors(Mapping[str, Tensor]):
    """What a task keeps: one tensor is read at a time, and none is held here."""

    suffix = ""
    """End of the keys in the file; the names of this mapping are without it."""

    def __init__(self, root: Path, ref: FileRef, *, verify: bool) -> None:
        self.stored = StoredFile(root, ref)
        self._hash_once = verify
        self._names: list[str] | None = None

    def _open(self) -> OpenedFile:
        opened = OpenedFile(self.stored.root, self.stored.ref, hashed=self._hash_once)
        self._hash_once = False
        return opened

    @classmethod
    def check(cls, opened: OpenedFile) -> None:
        """Refuse a file of other tensors than belong there.

        Raises:
            CorruptStoreError: it has such.
        """

    def _known(self) -> list[str]:
        if self._names is None:
            opened = self._open()
            self.check(opened)
            self._names = [n.removesuffix(self.suffix) for n in opened.names]
        return self._names

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._known():
            raise KeyError(name)
        return self._open().tensor(name + self.suffix)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())


class StoredFiles(StoredTensors):
    """The files of a task: names that are safe in a folder, and bytes."""

    @classmethod
    def check(cls, opened: OpenedFile) -> None:
        for name in opened.names:
            tensor = opened.tensor(name)
            if not is_companion(name) or tensor.dtype != torch.uint8 or tensor.ndim != 1:
                why = f"{name!r} is not the bytes of a file that belongs to an adapter"
                raise corrupt(str(opened.path), why)


class StoredSamples(StoredTensors):
    """Samples of the base weights, by module."""

    suffix = SAMPLE_SUFFIX

    @classmethod
    def check(cls, opened: OpenedFile) -> None:
        for name in opened.names:
            sample = opened.matrix(name, torch.float32)
            fits = tuple(sample.shape) == sample_shape(*sample.shape)
            if not name.endswith(cls.suffix) or not fits or not torch.isfinite(sample).all():
                raise corrupt(str(opened.path), f"{name!r} is not a sample of a weight")
