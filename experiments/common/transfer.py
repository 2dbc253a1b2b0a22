"""Forward transfer: does a new task learn faster in the subspace of more earlier tasks?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import transformers
from benchmarks.common import environment
from torch import nn

from experiments.common.tables import numbers, spread
from sharespace import Share
from sharespace.compare import ComparisonSettings, OwnLora, TaskJob, Workbench
from sharespace.compare.lora import add_lora
from sharespace.compare.methods.random_basis import random_model
from sharespace.learn import TrainingSettings, adapt, fit
from sharespace.tuner import release

EARLIER = (0, 1, 3, 6)
"""Tasks whose own LoRAs make the subspace; 0: a random one of the same size."""


@dataclass(frozen=True)
class Curve:
    """Scores of one training run."""

    steps: tuple[int, ...]
    scores: tuple[float, ...]

    def reaches(self, score: float) -> int | None:
        """The first step at which the score is reached; None: never."""
        return next((s for s, x in zip(self.steps, self.scores, strict=True) if x >= score), None)


class Watch(transformers.TrainerCallback):
    """Scores the model every few steps."""

    def __init__(self, model: nn.Module, score: Callable[[nn.Module], float], every: int) -> None:
        self.model, self.score, self.every = model, score, every
        self.points: list[tuple[int, float]] = []

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.model.eval()
            self.points.append((state.global_step, self.score(self.model)))
            self.model.train()

    @property
    def curve(self) -> Curve:
        steps, scores = zip(*self.points, strict=True)
        return Curve(tuple(steps), tuple(scores))


def measure(
    job: TaskJob, settings: ComparisonSettings, earlier: Mapping[str, OwnLora], every: int
) -> dict[str, Any]:
    """All curves of one new task.

    Args:
        earlier: own LoRAs of other tasks, in order.
        every: steps between scores.
    """
    curves = {"own LoRA": lora_curve(job, settings, every)}
    for count in EARLIER:
        share = subspace(job, settings, list(earlier.values())[:count])
        curves[f"{count} earlier"] = core_curve(job, share, settings, every)
        last = curves[f"{count} earlier"].scores[-1]
        print(f"{job.name} seed {settings.seed}, {count} earlier tasks: {last:.1f}", flush=True)
    return {
        "task": job.name,
        "seed": settings.seed,
        "earlier": list(earlier),
        "head_only": job.score(job.model()),
        "curves": {n: {"steps": c.steps, "scores": c.scores} for n, c in curves.items()},
        "environment": environment(settings.seed),
    }


def subspace(job: TaskJob, settings: ComparisonSettings, earlier: Sequence[OwnLora]) -> Share:
    """Of the earlier tasks' own LoRAs; without any, a random basis of the same size."""
    if not earlier:
        return Share(random_model(Workbench([job], settings)))
    return Share.from_adapters([o.adapter for o in earlier], k=settings.k, seed=settings.seed)


def lora_curve(job: TaskJob, settings: ComparisonSettings, every: int) -> Curve:
    """The task's own LoRA from scratch."""
    model = add_lora(job.model().requires_grad_(False), settings, job.heads)
    watch = Watch(model, job.score, every)
    training = replace(settings.lora, seed=settings.seed)
    fit(model, job.data, training, replace(job.setup, callbacks=[watch]))
    return watch.curve


def core_curve(job: TaskJob, share: Share, settings: ComparisonSettings, every: int) -> Curve:
    """The task learned in a subspace."""
    method = replace(settings.method, heads=job.heads, seed=settings.seed)
    training: TrainingSettings = replace(settings.coefficients, seed=settings.seed)
    model = job.model()
    watch = Watch(model, job.score, every)
    # PEFT puts its layers into the model itself, so this is what is trained.
    setup = replace(job.setup, callbacks=[watch])
    learned = adapt(model, share, job.data, training, task=job.name, method=method, setup=setup)
    release(learned.model)
    return watch.curve


def transfer_table(curves: Sequence[Mapping[str, Any]]) -> str:
    """Steps until parts of what own LoRA reaches."""
    parts = (0.95, 1.0)
    names = list(curves[0]["curves"])
    lines = [
        "## Forward transfer",
        "",
        "Steps until a curve first reaches a part of own LoRA's last score, and until it reaches "
        "80 % of own LoRA's gain over the head alone; mean over the seeds that reach it (how "
        "many).",
        "",
        "| task | learned in | 95 % of score | 100 % of score | 80 % of gain | last score |",
        "|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(c["task"] for c in curves):
        mine = [c for c in curves if c["task"] == task]
        for name in names:
            cells = [steps(mine, name, partial(part_of_score, part)) for part in parts]
            cells.append(steps(mine, name, partial(part_of_gain, 0.8)))
            last = spread([c["curves"][name]["scores"][-1] for c in mine])
            where = name if name == "own LoRA" else f"subspace of {name} tasks"
            lines.append(f"| {task} | {where} | {' | '.join(cells)} | {last} |")
    return "\n".join(lines) + "\n"


def part_of_score(part: float, record: Mapping[str, Any]) -> float:
    return float(part * record["curves"]["own LoRA"]["scores"][-1])


def part_of_gain(part: float, record: Mapping[str, Any]) -> float:
    own = record["curves"]["own LoRA"]["scores"][-1]
    return float(record["head_only"] + part * (own - record["head_only"]))


def steps(
    records: Sequence[Mapping[str, Any]], name: str, wanted: Callable[[Mapping[str, Any]], float]
) -> str:
    """Mean of the first step that reaches what is wanted."""
    found = []
    for record in records:
        curve = record["curves"][name]
        both = zip(curve["steps"], curve["scores"], strict=True)
        found.append(next((s for s, x in both if x >= wanted(record)), None))
    reached = numbers(found)
    return (
        f"{fmean(reached):.0f} ({len(reached)}/{len(found)})"
        if reached
        else f"never ({len(found)})"
    )
