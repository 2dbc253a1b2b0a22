"""Check every file of a store: bytes, shapes, values, and that bases are orthonormal."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from sharespace.errors import CorruptStoreError, StoreError
from sharespace.files import disk_errors
from sharespace.store.commits import StorePath
from sharespace.store.directory import (
    committed_versions,
    read_head,
    read_manifest,
    stray_manifests,
    versions_on_disk,
)
from sharespace.store.objects import OpenedFile
from sharespace.store.schema import HEAD, Content, FileRef, Manifest, ManifestRef, TaskEntry
from sharespace.store.stored_model import (
    StoredFiles,
    StoredSamples,
    check_basis_names,
    read_layer,
    read_task,
    summarise,
    tensors_of,
)
from sharespace.subspace.base_weights import sample_shape
from sharespace.subspace.layer import LayerSubspace

Status: TypeAlias = Literal["ok", "missing", "corrupt", "misfit", "not finite", "not orthonormal"]
FileVerdict: TypeAlias = tuple[Status, str]
Inspect: TypeAlias = Callable[[OpenedFile], FileVerdict]

_OK: FileVerdict = ("ok", "")


@dataclass(frozen=True)
class Finding:
    """What was found about one file."""

    version: int | None
    """The first version that was checked and needs the file; None for ``share.json`` and for a
    manifest that is no version's."""
    file: str
    """Path from the store's directory."""
    status: Status
    """``missing``; ``corrupt``: not the bytes that were committed; ``misfit``: what it holds does
    not fit the manifest; ``not finite``; ``not orthonormal`` beyond the rounding of its dtype."""
    detail: str = ""
    """Why; empty where all is well."""


@dataclass(frozen=True)
class Report:
    """What ``verify`` found in a store, file by file."""

    path: Path
    versions: tuple[int, ...]
    """Numbers of the versions that were checked."""
    findings: tuple[Finding, ...]
    """What was found, one entry for each file."""

    @property
    def damaged(self) -> tuple[Finding, ...]:
        """The findings that are not ``ok``."""
        return tuple(f for f in self.findings if f.status != "ok")

    @property
    def ok(self) -> bool:
        return not self.damaged


def verify(path: StorePath, *, all_versions: bool = False) -> Report:
    """Read all files of the current version, or of all versions, and check them.

    Where HEAD is damaged, the versions on disk are checked as far as they go.

    Args:
        path: the store.
        all_versions: check every version, not only the current one.

    Returns:
        One finding for each file; ``Report.ok`` where all are as they were committed.

    Raises:
        StoreNotFoundError: there is no store.
        SchemaVersionError: a newer sharespace wrote it.
        StoreError: the operating system refused to read.
    """
    root = Path(path)
    with disk_errors(root, "verifying"):
        head, refs, strays = _versions(root)
        checked = refs if all_versions else refs[-1:]
        survey = _Survey(root)
        for ref in checked:
            survey.check_version(ref)
    findings = (head, *survey.findings.values(), *strays)
    return Report(root, tuple(ref.number for ref in checked), findings)


def _versions(root: Path) -> tuple[Finding, list[ManifestRef], list[Finding]]:
    """What is found about HEAD, the versions, and the manifests that are none of them."""
    try:
        read_head(root)
    except CorruptStoreError as error:
        return Finding(None, HEAD, "corrupt", error.why), list(versions_on_disk(root).values()), []
    why = "another version of that number, which HEAD does not lead to; the next writer removes it"
    strays = [Finding(None, ref.file, "misfit", why) for ref in stray_manifests(root)]
    return Finding(None, HEAD, "ok"), list(committed_versions(root).values()), strays


class _Survey:
    """Findings so far; a file that versions share is read once for what they say of it alike."""

    def __init__(self, root: Path) -> None:
        self.findings: dict[str, Finding] = {}
        self._root = root
        self._seen: set[Hashable] = set()

    def check_version(self, ref: ManifestRef) -> None:
        manifest, verdict = self._manifest(ref)
        self._record(ref.number, ref.file, verdict)
        if manifest is None:
            return
        content = manifest.content
        layout = hash((content.dtype, tuple((la.module, la.shape, la.k) for la in content.layers)))
        self._check(ref.number, content.basis, layout, partial(_basis, content))
        # Reading a task pads it to the manifest's k, which only a whole basis file vouches for.
        k_is_real = self.findings[content.basis.file].status not in ("missing", "corrupt")
        for entry in content.tasks:
            about = (layout, entry.summary)
            inspect = partial(_task, content, entry) if k_is_real else _readable
            self._check(ref.number, entry.coefficients, about, inspect)
            if entry.kept is not None:
                self._check(ref.number, entry.kept, None, _readable)
            if entry.files is not None:
                self._check(ref.number, entry.files, None, _files)
        if content.base_samples is not None:
            self._check(ref.number, content.base_samples, layout, partial(_samples, content))

    def _manifest(self, ref: ManifestRef) -> tuple[Manifest | None, FileVerdict]:
        if not (self._root / ref.file).exists():
            return None, ("missing", "")
        try:
            return read_manifest(self._root, ref), _OK
        except CorruptStoreError as error:
            return None, ("corrupt", error.why)

    def _check(self, number: int, ref: FileRef, about: Hashable, inspect: Inspect) -> None:
        if (ref.file, about) in self._seen:
            return
        self._seen.add((ref.file, about))
        self._record(number, ref.file, _check_file(self._root, ref, inspect))

    def _record(self, number: int, file: str, verdict: FileVerdict) -> None:
        known = self.findings.get(file)
        if known is None or known.status == "ok":
            self.findings[file] = Finding(number, file, *verdict)


def _check_file(root: Path, ref: FileRef, inspect: Inspect) -> FileVerdict:
    if not (root / ref.file).exists():
        return "missing", ""
    try:
        opened = OpenedFile(root, ref, hashed=True)
    except StoreError as error:
        return "corrupt", error.why
    try:
        return inspect(opened)
    except CorruptStoreError as error:
        return "misfit", error.why


def _basis(content: Content, opened: OpenedFile) -> FileVerdict:
    check_basis_names(opened, [entry.module for entry in content.layers])
    for entry in content.layers:
        verdict = _layer(entry.module, read_layer(opened, entry, content.dtype))
        if verdict != _OK:
            return verdict
    return _OK


def _layer(module: str, layer: LayerSubspace) -> FileVerdict:
    # Only the columns of one group are orthonormal: the groups' subspaces overlap.
    for group in layer.subspaces():
        for side, basis in (("left", group.left_basis), ("right", group.right_basis)):
            if not torch.isfinite(basis).all():
                return "not finite", f"{side} basis of {module!r}"
            error, allowed = _orthogonality(basis), _tolerance(basis)
            if error > allowed:
                return "not orthonormal", f"{side} basis of {module!r}: {error:.1e} > {allowed:.1e}"
    return _OK


def _orthogonality(basis: Tensor) -> float:
    """Largest entry of |B^T B - I|."""
    wide = basis.to(torch.float64)
    gram = wide.T @ wide
    gram.diagonal().sub_(1)
    return float(gram.abs().max()) if gram.numel() else 0.0


def _tolerance(basis: Tensor) -> float:
    """What rounding explains: of the cast, at most eps, and of a QR in float32 (or float64)."""
    worked_in = torch.float64 if basis.dtype == torch.float64 else torch.float32
    worked = 16 * torch.finfo(worked_in).eps * math.sqrt(basis.shape[0])
    return 4 * torch.finfo(basis.dtype).eps + worked


def _task(content: Content, entry: TaskEntry, opened: OpenedFile) -> FileVerdict:
    layers = {layer.module: layer for layer in content.layers}
    task = read_task(opened, entry.name, layers, content.dtype)
    for name, tensor in tensors_of(task).items():
        if not torch.isfinite(tensor).all():
            return "not finite", name
    if summarise(task) != entry.summary:
        return "misfit", "the manifest's summary says something else"
    return _OK


def _readable(opened: OpenedFile) -> FileVerdict:
    for name in opened.names:
        opened.tensor(name)
    return _OK


def _files(opened: OpenedFile) -> FileVerdict:
    StoredFiles.check(opened)
    return _OK


def _samples(content: Content, opened: OpenedFile) -> FileVerdict:
    StoredSamples.check(opened)
    shapes = {la.module: (la.shape.out_features, la.shape.in_features) for la in content.layers}
    for name in opened.names:
        module = name.removesuffix(StoredSamples.suffix)
        if module not in shapes:
            return "misfit", f"a sample of {module!r}, which is no layer"
        if tuple(opened.tensor(name).shape) != sample_shape(*shapes[module]):
            return "misfit", f"the sample of {module!r} has another shape"
    return _OK
