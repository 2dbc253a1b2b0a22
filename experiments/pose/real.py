"""The real recipe: a stream of Pascal3D+ categories on a model of the Hub, one GPU.

    python -m experiments.pose.real --pascal3d PASCAL3D+_release1.1 --occluded OccludedPASCAL3D \\
        --base google/vit-base-patch16-224-in21k --targets q_proj v_proj --seeds 0 1 2

Everything is as in ``run``: one results file a seed, methods that are there are not run again.
``--base microsoft/resnet-50 --targets convolution`` adapts all convolutions of a ResNet.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.common.methods import METHODS
from experiments.common.runs import Run, run_methods
from experiments.pose.evaluation import evaluate
from experiments.pose.hub import HubBase, hub_model, load_hub
from experiments.pose.pascal3d import CATEGORIES, LEVELS, Photographs, occluded, split
from experiments.pose.settings import FULL, settings
from experiments.pose.task import PoseTask
from sharespace.compare import ComparisonSettings

MAIN = ("head_only", "per_task_lora", "share_strict")


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
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
    parser.add_argument("--k", type=int, default=96, help="cap of the subspaces")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--cache", type=Path, default=Path(".cache/pose-real"))
    parser.add_argument("--out", type=Path, default=Path("pose-real"), help="folder of results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    base = load_hub(chosen.base)
    for seed in chosen.seeds:
        run(base, seed, chosen)


def run(base: HubBase, seed: int, chosen: argparse.Namespace) -> None:
    """All methods with one seed, then the test sets under occlusion."""
    tasks = [make_task(base, name, seed, chosen) for name in chosen.categories]
    place = chosen.cache / f"{Path(base.name).name}-{chosen.steps}-{seed}"
    found = Run(
        folder=chosen.out / "runs",
        order="pascal3d",
        tasks=tuple(chosen.categories),
        base=base.name,
        settings=numbers(seed, chosen),
        own=place / "own",
        store=place / "share",
    )
    run_methods(found, lambda: [task.job() for task in tasks], chosen.methods)
    evaluate(tasks, found.own, place / "share", chosen.out / "occluded" / f"pascal3d-{seed}.json")


def make_task(base: HubBase, name: str, seed: int, chosen: argparse.Namespace) -> PoseTask:
    """One category: the training images of Pascal3D+, its validation images as the test."""

    def views(annotated: Sequence[object]) -> Photographs:
        return Photographs(annotated, base.size, base.mean, base.deviation)  # type: ignore[arg-type]

    train = views(split(chosen.pascal3d, name, "train"))
    clean = split(chosen.pascal3d, name, "val")
    tests = {"clean": views(clean)}
    if chosen.occluded is not None:
        for level in LEVELS:
            tests[level] = views(occluded(chosen.occluded, clean, name, level))
    return PoseTask(name, train, tests, hub_model(base, train, seed))


def numbers(seed: int, chosen: argparse.Namespace) -> ComparisonSettings:
    """Those of the rendered experiment, but for what the command line says."""
    size = replace(FULL, steps=chosen.steps, batch_size=chosen.batch_size)
    found = settings(size, seed)
    trainings = {
        name: replace(getattr(found, name), use_cpu=chosen.cpu)
        for name in ("head", "lora", "coefficients", "finetune")
    }
    return replace(found, **trainings, targets=chosen.targets, k=chosen.k)


if __name__ == "__main__":
    main()
