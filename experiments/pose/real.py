"""The real recipe: a stream of Pascal3D+ categories on a model of the Hub, one GPU.

    python -m experiments real pose --pascal3d PASCAL3D+_release1.1 --occluded OccludedPASCAL3D \\
        --base google/vit-base-patch16-224-in21k --targets q_proj v_proj --seeds 0 1 2

Everything is as in ``run``: one results file a seed, methods that are there are not run again.
``--base microsoft/resnet-50 --targets convolution`` adapts all convolutions of a ResNet.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.harness.methods import METHODS
from experiments.harness.results import write
from experiments.harness.run import Stream, run_methods
from experiments.pose.experiment import numbers
from experiments.pose.hub import hub_model, load_hub
from experiments.pose.occluded import evaluate, file_of
from experiments.pose.pascal3d import CATEGORIES, LEVELS, Annotated, Photographs, occluded, split
from experiments.pose.size import FULL
from experiments.pose.task import PoseExperiment, PoseTask
from sharespace.compare import ComparisonSettings

MAIN = ("head_only", "per_task_lora", "share_strict")
ORDER = "pascal3d"


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pascal3d", type=Path, required=True, help="PASCAL3D+_release1.1")
    parser.add_argument("--occluded", type=Path, help="OccludedPASCAL3D+, for L1 to L3")
    parser.add_argument("--base", default="google/vit-base-patch16-224-in21k")
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, default=list(CATEGORIES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(MAIN))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--k", type=int, default=96, dest="cap", help="cap of the subspaces")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--cache", type=Path, default=Path(".cache/pose-real"))
    parser.add_argument("--out", type=Path, default=Path("pose-real"), help="folder of results")
    parser.set_defaults(quick=False, into="runs")
    experiment = Pascal3D(parser.parse_args(arguments))
    for seed in experiment.options.seeds:
        run_methods(Stream(experiment, ORDER, seed), experiment.options.methods)
        write(file_of(experiment, ORDER, seed), evaluate(experiment, ORDER, seed))


class Pascal3D(PoseExperiment):
    """Categories of Pascal3D+; the numbers are those of the rendered experiment, but for what the
    command line says."""

    name = "pose"
    subspace = False

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.hub = load_hub(options.base)
        self.base = options.base
        self.orders = {ORDER: tuple(options.categories)}
        self.key = f"{Path(options.base).name}-{options.steps}"
        self.size = replace(FULL, steps=options.steps, batch_size=options.batch_size)
        self.numbers = replace(numbers(self.size), targets=options.targets)

    def settings(self, seed: int, tasks: int) -> ComparisonSettings:
        settings = super().settings(seed, tasks)
        trainings = {
            name: replace(getattr(settings, name), use_cpu=self.options.cpu)
            for name in ("head", "lora", "coefficients", "finetune")
        }
        return replace(settings, **trainings, k=self.options.cap)

    def task(self, name: str, seed: int, held_out: int = 0) -> PoseTask:
        """The training images of Pascal3D+, its validation images as the test."""
        del held_out  # Nothing is tuned here.
        return self.once((name, seed), lambda: self._task(name, seed))

    def _task(self, name: str, seed: int) -> PoseTask:
        train = self._views(split(self.options.pascal3d, name, "train"))
        clean = split(self.options.pascal3d, name, "val")
        tests = {"clean": self._views(clean)}
        if self.options.occluded is not None:
            for level in LEVELS:
                hidden = occluded(self.options.occluded, clean, name, level)
                tests[level] = self._views(hidden)
        return PoseTask(name, train, tests, hub_model(self.hub, train, seed))

    def _views(self, annotated: Sequence[Annotated]) -> Photographs:
        return Photographs(annotated, self.hub.size, self.hub.mean, self.hub.deviation)
