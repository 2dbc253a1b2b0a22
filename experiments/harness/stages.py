"""The stages that every experiment has."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

STAGES = ("run", "tune", "transfer", "kinds", "summarise")


def start(stage: str, name: str, arguments: Sequence[str]) -> None:
    """A stage of an experiment, as from the command line."""
    module = importlib.import_module(f"experiments.harness.{stage}")
    kinds = module if stage == "summarise" else importlib.import_module(_EXPERIMENT)
    module.main(kinds.known(name), arguments)


_EXPERIMENT = "experiments.harness.experiment"
