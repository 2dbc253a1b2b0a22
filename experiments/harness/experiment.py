"""What an experiment gives; every stage is made of these."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import nn

from experiments.harness import numbers
from experiments.harness.methods import METHODS
from experiments.harness.numbers import Numbers
from experiments.harness.trials import Trial
from sharespace.compare import ComparisonSettings, OwnLora, TaskJob, Workbench
from sharespace.compare.own_folder import load_own, save_own

ROOT = Path(__file__).parents[1]


class Experiment:
    """Tasks on one base model, with all that the stages need to run, tune and compare on them.

    Args:
        options: of the command line (``parser``).
    """

    name: ClassVar[str]
    """Of its folder."""
    data: ClassVar[str] = "folder with one folder a set"
    """What ``--data`` is."""
    bases: ClassVar[tuple[str, ...]] = ()
    """Names of the base models that ``--base`` takes; their results are kept apart."""
    methods: ClassVar[tuple[str, ...]] = METHODS
    """Methods that are run unless others are named."""
    subspace: ClassVar[bool] = True
    """Its report shows how the bases move (``Report.draw``), so ``run`` records it."""
    held_out: ClassVar[int] = 0
    """Training examples that ``tune`` scores on."""

    base: str
    """What the results files call the base model."""
    key: str
    """Names what the own LoRAs are made with, but for the seed."""
    size: Any
    """How much of everything: a dataclass."""
    numbers: Numbers
    orders: Mapping[str, tuple[str, ...]]
    """Order -> its tasks. Of each the first ``numbers.initial`` come as adapters."""
    tuned: Sequence[str]
    """Tasks that ``tune`` tries settings on."""
    trials: Sequence[Trial]
    """What ``tune`` tries, unless the command line says it."""
    new_tasks: Sequence[str] = ()
    """Tasks that ``transfer`` learns."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.quick: bool = options.quick
        self.cache: Path = options.cache

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Options of this experiment alone."""

    def job(self, task: str, seed: int, held_out: int = 0) -> TaskJob:
        """One task as the baselines take it.

        Args:
            task: its name.
            seed: of the head.
            held_out: so many of the training examples take the place of the test examples, and
                nothing is trained on them.
        """
        raise NotImplementedError

    def streams(
        self, orders: Mapping[str, tuple[str, ...]], initial: int = 3
    ) -> Mapping[str, tuple[str, ...]]:
        """The orders; where all is tiny, only one task of each is learned from data."""
        return {n: o[: initial + 1] if self.quick else o for n, o in orders.items()}

    def settings(self, seed: int, tasks: int) -> ComparisonSettings:
        """All methods' numbers for a stream of so many tasks, as the command line says."""
        return numbers.vary(self.numbers.settings(seed, tasks), self.options, tasks)

    def begin(self, order: str, seed: int) -> None:
        """Called before the methods of a stream run."""

    def begin_method(self, order: str, seed: int, method: str) -> None:
        """Called before each method."""

    def measure(self, job: TaskJob, model: nn.Module) -> dict[str, float]:
        """What ``tune`` writes down of a trained model."""
        return {"score": job.score(model)}

    @property
    def size_record(self) -> dict[str, Any]:
        """The size as results files say it."""
        return asdict(self.size)

    def results(self, stage: str) -> Path:
        """Folder of a stage's results files."""
        folder: Path = self.options.out / stage
        return folder / self.options.base if self.bases else folder

    def own_folder(self, seed: int) -> Path:
        """Where the own LoRAs of a seed are kept, so that all orders and stages use the same."""
        return numbers.own_folder(self.cache / "own" / f"{self.key}-{seed}", self.options)

    def share_folder(self, order: str, seed: int) -> Path:
        """Where the Share model of a stream is kept."""
        return self.cache / "share" / f"{self.key}-{order}-{seed}"

    def own_loras(self, tasks: Sequence[str], seed: int) -> dict[str, OwnLora]:
        """Own LoRAs of some tasks; those that ``run`` has not left are trained."""
        known = load_own(self.own_folder(seed))
        missing = [task for task in tasks if task not in known]
        if missing:
            jobs = [self.job(task, seed) for task in missing]
            bench = Workbench(jobs, self.settings(seed, len(tasks)))
            known |= bench.own_loras()
            save_own(self.own_folder(seed), bench.own)
        return {task: known[task] for task in tasks}


def parser(
    kind: type[Experiment], description: str | None, seeds: Sequence[int] = (0, 1, 2)
) -> argparse.ArgumentParser:
    """Options that all stages of an experiment have."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True, help=kind.data)
    if kind.bases:
        options.add_argument("--base", choices=kind.bases, default=kind.bases[0])
    options.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    options.add_argument("--cache", type=Path, default=Path(".cache") / kind.name)
    results = ROOT / kind.name / "results"
    options.add_argument("--out", type=Path, default=results, help="folder of all results")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--quick", action="store_true", help="tiny: for tests")
    kind.add_options(options)
    return options


def opened(kind: type[Experiment], options: argparse.Namespace) -> Any:
    """The experiment over its base model, with as many threads as were asked for."""
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return kind(options)
