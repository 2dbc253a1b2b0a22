"""The stages that every experiment has."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

STAGES = ("run", "tune", "rates", "transfer", "kinds", "summarise")


def start(stage: str, name: str, arguments: Sequence[str]) -> None:
    """A stage of an experiment, as from the command line."""
    module = importlib.import_module(f"experiments.harness.{stage}")
    module.main(class_of(name, "report" if stage == "summarise" else "experiment"), arguments)


def class_of(name: str, part: str) -> Any:
    """The ``Experiment`` or ``Report`` of a folder: called as the folder is, in another case.

    Args:
        name: of the folder.
        part: its module, ``experiment`` or ``report``.
    """
    module = importlib.import_module(f"experiments.{name}.{part}")
    return getattr(module, name.title().replace("_", ""))
