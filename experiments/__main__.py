"""All stages of all experiments: ``python -m experiments STAGE EXPERIMENT [OPTIONS]``.

``run``, ``tune``, ``transfer``, ``kinds`` and ``summarise`` are the harness's; what else there is,
an experiment's folder has as a module of that name. Without a stage, all are listed; with
``--help`` after the experiment, a stage says what it does.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import EXPERIMENTS
from experiments.harness import stages

ROOT = Path(__file__).parent


def main(arguments: Sequence[str]) -> None:
    """Run a stage, or say which there are."""
    if len(arguments) < 2 or arguments[1] not in EXPERIMENTS:
        sys.exit(usage())
    stage, name, *options = arguments
    if stage not in of(name):
        sys.exit(f"{name} has no stage {stage!r}; it has {', '.join(of(name))}")
    if stage not in getattr(importlib.import_module(f"experiments.{name}"), "HUB", ()):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if stage in stages.STAGES and stage not in own(name):
        stages.start(stage, name, options)
    else:
        importlib.import_module(f"experiments.{name}.{stage}").main(options)


def usage() -> str:
    """What there is."""
    listed = "\n".join(f"  {name}: {', '.join(of(name))}" for name in EXPERIMENTS)
    return f"usage: python -m experiments STAGE EXPERIMENT [OPTIONS]\n\nstages:\n{listed}"


def of(name: str) -> list[str]:
    """The stages of an experiment."""
    shared = stages.STAGES if (ROOT / name / "experiment.py").is_file() else ()
    return [*shared, *own(name)]


def own(name: str) -> Sequence[str]:
    """Those that only its folder has."""
    names: Sequence[str] = getattr(importlib.import_module(f"experiments.{name}"), "STAGES", ())
    return names


if __name__ == "__main__":
    main(sys.argv[1:])
