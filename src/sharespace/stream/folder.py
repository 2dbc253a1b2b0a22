"""The folder of a run, beside the Share model: its recipe, finished LoRAs, records of its steps.

::

    glue.share.run/
      lock                  held while the stream runs
      stream.json           the recipe that it was started with
      initial/001-sst2      an initial task's LoRA, in PEFT's form; there as soon as it is trained
      initial/001-sst2.json   what was counted of its training; written before it
      features/1f0c...      what a router takes of a task, named by its sha256; written before
                            the record that names it
      steps/0001.json       a step's record; written before the step's version is committed
      router.safetensors    the router of all tasks, where the recipe asks for one
      router.json           its scores, and the version that they are of; written after it
      trackers/sst2         what trackers write

A step's record holds the digest of the version that it belongs to. It counts once the store's
current version has that content: whatever the instant of a kill, a step is there with its scores,
or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from sharespace.errors import (
    CorruptStoreError,
    StoreConflictError,
    StoreExistsError,
    StoreNotFoundError,
)
from sharespace.files import (
    disk_errors,
    lock,
    make_directory,
    read_bytes,
    remove_temporary,
    write_files,
)
from sharespace.store import checkout, refuse_existing
from sharespace.stream.recipe import Recipe, record, refuse_other
from sharespace.stream.records import Step, content_digest
from sharespace.strict_json import parse_json

FORMAT = "sharespace.stream"

VERSION = 1

_RECIPE = "stream.json"

ROUTER = "router.safetensors"

_ROUTER_RECORD = "router.json"

_MOST_RECORD_BYTES = 1 << 28

_MOST_FEATURE_BYTES = 1 << 34


class RunFolder:
    """Reads and writes the folder of a run; every file appears whole or not at all."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.share = recipe.share
        self.path = recipe.share.with_name(f"{recipe.share.name}.run")

    @property
    def _initial(self) -> Path:
        return self.path / "initial"

    @property
    def _steps(self) -> Path:
        return self.path / "steps"

    @property
    def _folders(self) -> list[Path]:
        """Folders that files are written into."""
        needed = [self.path, self._initial, self._steps]
        return [*needed, self.router.features] if self.recipe.router else needed

    @property
    def router(self) -> RouterFiles:
        """What is kept for a router, and the router."""
        return RouterFiles(self.path)

    def trackers(self, task: str) -> Path:
        """Where trackers write of a task."""
        return self.path / "trackers" / plain(task)

    def initial_adapter(self, number: int, task: str) -> Path:
        """Where the LoRA of the initial task of that number (from 1) goes."""
        return self._initial / f"{number:03d}-{plain(task)}"

    def finished(self) -> tuple[Step, ...]:
        """The steps that are committed, in order.

        Raises:
            RecipeError: the stream was started with another recipe.
            StoreExistsError: a Share model is there that no stream made.
            StoreConflictError: its current version is none of this stream.
            CorruptStoreError: a record is damaged.
        """
        stored = self._stored_recipe()
        if stored is None:
            self._refuse_existing()
            return ()
        steps = self._committed()
        if steps or self._has_initial():
            refuse_other(self.recipe, stored)
        return steps

    def _refuse_existing(self) -> None:
        """Refuse a path where something is that this stream did not make."""
        try:
            refuse_existing(self.share)
        except StoreExistsError as error:
            raise StoreExistsError(
                error.what,
                f"{error.why}, and no run of a recipe beside it ({self.path.name})",
                "Choose another share for the recipe",
            ) from error

    def _stored_recipe(self) -> Mapping[str, Any] | None:
        path = self.path / _RECIPE
        if not path.exists():
            return None
        recipe = read_json(path)
        if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
            raise CorruptStoreError(str(path), "no record of a stream", "Bring it back as it was")
        if recipe.get("version") != VERSION:
            why = f"has version {recipe.get('version')!r}; this release reads {VERSION}"
            raise CorruptStoreError(str(path), why, "Use the release that wrote it")
        return recipe

    def _committed(self) -> tuple[Step, ...]:
        try:
            opened = checkout(self.share)
        except StoreNotFoundError:
            self._refuse_existing()
            return ()
        current = content_digest(opened.manifest.content)
        chain: list[Step] = []
        for path in self._records():
            step = Step.from_record(read_json(path), str(path))
            if step.parent != (chain[-1].content if chain else None):
                break
            chain.append(step)
            if step.content == current:
                return tuple(chain)
        raise StoreConflictError(
            str(self.share),
            f"its current version ({opened.version.number}, {opened.version.operation.verb}) "
            "was not made by this stream",
            "Roll back to the stream's last version (sharespace history, rollback), or take "
            "another share",
        )

    def _records(self) -> list[Path]:
        """Files of the steps' records in order; not what a kill left half-written."""
        numbered = (p for p in self._steps.glob("*.json") if p.stem.isdecimal())
        return sorted(numbered, key=lambda p: int(p.stem))

    def _has_initial(self) -> bool:
        return any(p.is_dir() and not p.name.startswith(".") for p in self._initial.glob("*"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; make the folders, and clear what a kill left.

        Raises:
            StoreLockedError: another process runs the stream.
            StoreError: the disk refuses.
        """
        with disk_errors(self.path, "writing the run"):
            for folder in self._folders:
                make_directory(folder)
            with lock(self.path / "lock"):
                for folder in self._folders:
                    remove_temporary(folder)
                yield

    def write_recipe(self) -> None:
        """Write down the recipe, appended tasks included."""
        recipe = {"format": FORMAT, "version": VERSION, **record(self.recipe)}
        write_json(self.path, _RECIPE, recipe)

    def keep_counts(self, adapter: Path, counts: Mapping[str, object]) -> None:
        """Write down what was counted of an initial LoRA, before it appears itself."""
        write_json(adapter.parent, f"{adapter.name}.json", counts)

    def counts(self, adapter: Path) -> Mapping[str, Any] | None:
        """What was counted of an initial LoRA; None: it is not there."""
        if not adapter.is_dir():
            return None
        counts: Mapping[str, Any] = read_json(adapter.with_name(f"{adapter.name}.json"))
        return counts

    def write_step(self, step: Step) -> None:
        """Write down a step, before its version is committed."""
        write_json(self._steps, f"{step.number:04d}.json", step.to_record())


def plain(task: str) -> str:
    """A task's name as part of a file's name: at most 60 characters, none of them special."""
    return re.sub(r"[^\w.-]", "_", task)[:60]


def write_json(folder: Path, name: str, value: Mapping[str, object]) -> None:
    """Write a record, which appears whole or not at all."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=True)
    write_files(folder, [(name, [text.encode()])])


def read_json(path: Path) -> Any:
    """Read a record.

    Raises:
        CorruptStoreError: it is not there, or no JSON.
    """
    return parse_json(read_whole(path, _MOST_RECORD_BYTES), partial(_corrupt, path))


def read_whole(path: Path, most: int) -> bytes:
    """A file's bytes.

    Raises:
        CorruptStoreError: it is not there.
    """
    try:
        return read_bytes(path, most, partial(_corrupt, path))
    except FileNotFoundError as error:
        raise _corrupt(path, "missing") from error


def _corrupt(path: Path, why: str) -> CorruptStoreError:
    return CorruptStoreError(str(path), why, "Bring it back as it was")


@dataclass(frozen=True)
class RouterFiles:
    """Features of tasks, and the router of all of them with its scores."""

    path: Path
    """The run's folder."""

    @property
    def features(self) -> Path:
        """Folder of what is taken of each task."""
        return self.path / "features"

    @property
    def router(self) -> Path:
        """The router of the last step."""
        return self.path / ROUTER

    def keep_features(self, data: bytes) -> str:
        """Write what a router takes of a task, before the step's record names it.

        Returns:
            Its name.
        """
        name = sha256(data).hexdigest()
        write_files(self.features, [(name, [data])])
        return name

    def read_features(self, name: str) -> bytes:
        """What ``keep_features`` wrote.

        Raises:
            CorruptStoreError: it is gone, or its bytes have changed.
        """
        path = self.features / name
        data = read_whole(path, _MOST_FEATURE_BYTES)
        if sha256(data).hexdigest() != name:
            raise CorruptStoreError(str(path), "its bytes changed", "Bring it back as it was")
        return data

    def keep_record(self, record: Mapping[str, object], content: str) -> None:
        """Write down the router's scores, after the router itself.

        Args:
            content: of the version that they are of.
        """
        write_json(self.path, _ROUTER_RECORD, {"content": content, "router": record})

    def record(self, content: str) -> Mapping[str, Any] | None:
        """The scores of the router of the version with that content; None: it is yet to be made."""
        path = self.path / _ROUTER_RECORD
        if not path.exists() or not self.router.exists():
            return None
        written = read_json(path)
        try:
            record: Mapping[str, Any] = written["router"]
            return record if written["content"] == content else None
        except (TypeError, KeyError) as error:
            why = f"no record of a router ({error})"
            raise CorruptStoreError(str(path), why, "Remove it: it is made again") from error
