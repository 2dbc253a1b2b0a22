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

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sharespace.errors import (
    CorruptStoreError,
    StoreConflictError,
    StoreExistsError,
    StoreNotFoundError,
)
from sharespace.recipe import Recipe, record, refuse_other
from sharespace.store import atomic, checkout, refuse_existing
from sharespace.stream.files import clear, plain, read_json, write_json
from sharespace.stream.records import Step, content_digest
from sharespace.stream.router_files import RouterFiles

FORMAT = "sharespace.stream"
VERSION = 1
_RECIPE = "stream.json"


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
        """Where files are written."""
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
            self._refuse_stranger()
            return ()
        steps = self._committed()
        if steps or self._has_initial():
            refuse_other(self.recipe, stored)
        return steps

    def _refuse_stranger(self) -> None:
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
        found = read_json(path)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise CorruptStoreError(str(path), "no record of a stream", "Bring it back as it was")
        if found.get("version") != VERSION:
            why = f"has version {found.get('version')!r}; this release reads {VERSION}"
            raise CorruptStoreError(str(path), why, "Use the release that wrote it")
        return found

    def _committed(self) -> tuple[Step, ...]:
        try:
            opened = checkout(self.share)
        except StoreNotFoundError:
            self._refuse_stranger()
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
        """In order; not what a kill left half-written."""
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
        with atomic.disk_errors(self.path, "writing the run"):
            for folder in self._folders:
                atomic.make_directory(folder)
            with atomic.lock(self.path / "lock"):
                for folder in self._folders:
                    clear(folder)
                yield

    def begin(self) -> None:
        """Write down the recipe, appended tasks included."""
        found = {"format": FORMAT, "version": VERSION, **record(self.recipe)}
        write_json(self.path, _RECIPE, found)

    def keep_counts(self, adapter: Path, counts: Mapping[str, Any]) -> None:
        """Write down what was counted of an initial LoRA, before it appears itself."""
        write_json(adapter.parent, f"{adapter.name}.json", counts)

    def counts(self, adapter: Path) -> Mapping[str, Any] | None:
        """What was counted of an initial LoRA; None: it is not there."""
        if not adapter.is_dir():
            return None
        found: Mapping[str, Any] = read_json(adapter.with_name(f"{adapter.name}.json"))
        return found

    def write_step(self, step: Step) -> None:
        """Before its version is committed."""
        write_json(self._steps, f"{step.number:04d}.json", step.to_record())
