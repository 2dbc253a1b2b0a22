"""OSF: orthogonal subspace fine-tuning of weights (Nayak et al., arXiv 2504.07097), by PEFT."""

from __future__ import annotations

from typing import Any

from torch import nn

from sharespace.compare.bench import Workbench
from sharespace.compare.job import Outcome, StoredBytes, TaskJob
from sharespace.compare.methods.own import train
from sharespace.compare.trainers import count, target_shapes
from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.learn import Fit
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.adapter import ModuleShape


def osf(bench: Workbench) -> Outcome:
    """Each task trains the weights' lower singular directions; the upper ones are frozen.

    As PEFT's documentation has it for a known number T of tasks: task t (from 0) keeps t / T of the
    directions (one at least), and the SVD is made anew from the weights as they are then. The
    update is merged into the weights before that: PEFT's ``unload``, which its documentation
    names, would take it back. The adapted weights are stored whole, once.

    Raises:
        OptionError: a target is not linear (OSF has nothing for convolutions).
    """
    shapes = target_shapes(bench)
    if odd := [m for m, s in shapes.items() if s.kernel]:
        raise OptionError(f"target {odd[0]!r}", "OSF adapts linear modules only", "Leave osf out")
    matrix = ScoreMatrix(bench.tasks)
    fits: list[Fit] = []
    numbers: dict[str, int] = {}
    models: dict[str, nn.Module] = {name: bench.fresh(name) for name in bench.tasks}
    with bench.changing_backbone(shapes):
        for step, (name, job) in enumerate(bench.jobs.items()):
            wrapped = _wrap(models[name], shapes, step / len(bench.jobs), job)
            numbers[name] = count(wrapped, job.heads)
            fits.append(_train(bench, job, wrapped))
            models[name] = wrapped.merge_and_unload()
            scores = {known: bench.score(known, models[known]) for known in numbers}
            matrix = matrix.with_step(name, scores, learned=[name])
    whole = sum(4 * s.out_features * s.in_features for s in shapes.values())
    return Outcome(
        method="osf",
        matrix=matrix,
        trainable=numbers,
        heads=bench.head_numbers,
        stored=StoredBytes(adapters=whole, heads=bench.head_bytes),
        seconds=sum(f.seconds for f in fits),
        steps=sum(f.steps for f in fits),
    )


def _train(bench: Workbench, job: TaskJob, wrapped: Any) -> Fit:
    return train(bench, job, wrapped, bench.settings.osf or bench.settings.lora)


def _wrap(model: nn.Module, shapes: dict[str, ModuleShape], frozen: float, job: TaskJob) -> Any:
    peft = require("peft", "train")
    kept = {m: max(1, int(frozen * min(s.out_features, s.in_features))) for m, s in shapes.items()}
    config = peft.OSFConfig(
        target_modules=list(shapes),
        modules_to_save=list(job.heads) or None,
        rank_pattern={rf"^{name}$".replace(".", r"\."): rank for name, rank in kept.items()},
    )
    return peft.get_peft_model(model, config)
