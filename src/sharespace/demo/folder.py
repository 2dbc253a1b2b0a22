"""The demo's output folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sharespace.errors import OptionError

MARK = ".sharespace-demo"
"""File by which a folder of an earlier run is known, so that nothing else is ever replaced."""


@dataclass(frozen=True)
class Folder:
    """Where the demo's files go."""

    root: Path

    @property
    def base(self) -> Path:
        """The pretrained model."""
        return self.root / "base"

    @property
    def share(self) -> Path:
        """The final Share model."""
        return self.root / "share"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def picture(self) -> Path:
        return self.root / "demo.png"

    def own_lora(self, task: str) -> Path:
        """The task's own adapter, by PEFT."""
        return self.root / "own-lora" / task

    def exported(self, task: str) -> Path:
        """The task out of the final Share model, as a PEFT adapter."""
        return self.root / "exported" / task


def prepare(out: Path) -> Folder:
    """The folder without what an earlier run of the demo left there; other files in it stay.

    Raises:
        OptionError: there is something at the path that no demo made.
    """
    if out.exists() and not (out / MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(str(out), "is not empty and not an earlier demo", "Choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    folder = Folder(out)
    for old in (folder.base, folder.share, out / "own-lora", out / "exported"):
        shutil.rmtree(old, ignore_errors=True)
    for file in (folder.results, folder.picture):
        file.unlink(missing_ok=True)
    return folder
