"""What all scripts of the experiment begin with."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from experiments.generation.base import Base, load_base
from experiments.generation.scoring import Tests, make_tests
from experiments.generation.settings import FULL, QUICK, Size
from experiments.generation.tasks import GenerationTask, make_tasks

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, eq=False)
class Ready:
    """Base model and tasks."""

    size: Size
    base: Base
    tasks: dict[str, GenerationTask]
    tests: dict[str, Tests]


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """Options that all scripts have.

    Args:
        out: folder of the results.
    """
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--data", type=Path, required=True, help="folder with one folder a set")
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument("--cache", type=Path, default=Path(".cache/generation"))
    found.add_argument("--out", type=Path, default=RESULTS / out)
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--quick", action="store_true", help="tiny: for tests")
    return found


def begin(chosen: argparse.Namespace) -> Ready:
    """The base model (trained where the cache lacks it) and all tasks, with nothing printed."""
    torch.set_num_threads(chosen.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    size = QUICK if chosen.quick else FULL
    base = load_base(chosen.data, size.pretraining, chosen.cache)
    tasks = make_tasks(chosen.data, size)
    tests = make_tests(base, tasks, size.pretraining.length)
    return Ready(size, base, {t.name: t for t in tasks}, {t.name: t for t in tests})
