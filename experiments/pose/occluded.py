"""Head only, own LoRA and Share at the end of a stream, on all test sets of every category.

    python -m experiments occluded pose --data DATA --seeds 0 1 2

After ``run``, which leaves the own LoRAs and the Share model at the end of the stream in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import environment

from experiments.harness.experiment import opened, parser
from experiments.harness.results import write
from experiments.harness.training import exact, holding
from experiments.pose.experiment import Pose
from experiments.pose.rotations import error, rotation
from experiments.pose.scoring import pose_score
from experiments.pose.task import PoseExperiment, PoseTask
from sharespace import Share
from sharespace.compare.own_folder import load_own
from sharespace.errors import TaskNotFoundError

VIEW = 1
"""Which test view of each category the figure shows: the same for all, so none is picked."""


def main(arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    choices = parser(Pose, __doc__)
    choices.add_argument("--orders", nargs="+", help="default: all")
    options = choices.parse_args(arguments)
    experiment: Pose = opened(Pose, options)
    for seed in options.seeds:
        for order in options.orders or experiment.orders:
            write(file_of(experiment, order, seed), evaluate(experiment, order, seed))
            print(f"{order} seed {seed}: scored", flush=True)


def file_of(experiment: PoseExperiment, order: str, seed: int) -> Path:
    """Results file of one stream."""
    return experiment.results("occluded") / f"{order}-{seed}.json"


def evaluate(experiment: PoseExperiment, order: str, seed: int) -> dict[str, Any]:
    """All scores of one stream: category -> method -> test set -> scores.

    Raises:
        TaskNotFoundError: a category has no own LoRA in the cache.
    """
    known = load_own(experiment.own_folder(seed))
    share = Share.load(experiment.share_folder(order, seed))
    scores: dict[str, Any] = {}
    for name in experiment.orders[order]:
        if name not in known:
            folder = experiment.own_folder(seed)
            raise TaskNotFoundError(f"task {name!r}", f"has no own LoRA in {folder}")
        task = experiment.task(name, seed)
        models = {
            "head_only": None,
            "per_task_lora": exact(known[name].adapter),
            "share_strict": share,
        }
        scores[name] = {}
        for method, holder in models.items():
            with holding(task.model(), holder, name) as model:
                scores[name][method] = {
                    test: measure(task, model, test, method == "share_strict")
                    for test in task.tests
                }
    return {"environment": environment(seed), "scores": scores}


def measure(task: PoseTask, model: Any, test: str, shown: bool) -> dict[str, Any]:
    """Scores on one test set.

    Args:
        task: the category.
        model: of it, in evaluation mode.
        test: a name of ``task.tests``.
        shown: the figure needs what the model says of one of the views, too.
    """
    predicted, true = task.predict(model, test)
    record: dict[str, Any] = pose_score(predicted, true, task.group).to_record()
    record["views"] = len(true)
    if shown:
        one = slice(VIEW, VIEW + 1)
        wrong = error(rotation(predicted[one].double()), rotation(true[one].double()), task.group)
        record["shown"] = {
            "predicted": predicted[VIEW].tolist(),
            "error": float(torch.rad2deg(wrong)[0]),
        }
    return record
