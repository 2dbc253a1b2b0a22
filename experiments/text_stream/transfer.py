"""Forward transfer: how soon a new task is learned in the subspace of 0, 1, 3 or 6 earlier tasks.

    python -m experiments.text_stream.transfer --data DATA/text --seeds 0 1 2

For each new task: its own LoRA from scratch, and one core in the subspace of the own LoRAs of so
many other tasks (0: a random basis of the same size), everything else the same. Scored every few
steps on the test examples; the table says when a curve first reaches a part of what own LoRA
reaches at its end. Run after ``run``: it uses the own LoRAs that ``run`` left in the cache.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
from benchmarks.common import environment
from experiments.common import own as own_files
from experiments.common.runs import write
from experiments.text_stream import script
from experiments.text_stream.jobs import Base, make_job
from experiments.text_stream.settings import FULL, ORDERS, QUICK, settings
from torch import nn

from sharespace import Share
from sharespace.baselines import Own, TaskJob, Workbench
from sharespace.baselines.lora import add_lora
from sharespace.baselines.random_basis import random_model
from sharespace.learn import Method, Training, adapt, fit
from sharespace.nn import release

TARGETS = ("qnli", "amazon5", "mnli")
EARLIER = (0, 1, 3, 6)
PARTS = (0.95, 0.9, 0.8)


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


def options() -> argparse.Namespace:
    parser = script.parser(__doc__, "transfer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--every", type=int, default=20, help="steps between scores")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    base = script.begin(chosen)
    for seed in chosen.seeds:
        for target in chosen.targets:
            file = chosen.out / f"{target}-{seed}.json"
            if not file.is_file():
                write(file, measure(base, target, seed, chosen))


def measure(base: Base, target: str, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """All curves of one new task."""
    size = QUICK if chosen.quick else FULL
    every = 1 if chosen.quick else chosen.every
    numbers = settings(size, seed)
    own = own_files.load(script.own_folder(chosen.cache, base, size, seed))
    earlier = [name for name in ORDERS["glue-first"] if name != target]
    job = make_job(base, chosen.data / target, size, seed, chosen.cache)
    curves = {"own LoRA": lora_curve(job, numbers, every)}
    for count in EARLIER:
        share = subspace(job, numbers, [own[name] for name in earlier[:count]])
        curves[f"{count} earlier"] = core_curve(job, share, numbers, every)
        last = curves[f"{count} earlier"].scores[-1]
        print(f"{target} seed {seed}, {count} earlier tasks: {last:.1f}", flush=True)
    head = job.score(job.model())
    return {
        "task": target,
        "seed": seed,
        "earlier": earlier,
        "head_only": head,
        "curves": {n: {"steps": c.steps, "scores": c.scores} for n, c in curves.items()},
        "environment": environment(seed),
    }


def subspace(job: TaskJob, numbers: Any, earlier: Sequence[Own]) -> Share:
    """Of the earlier tasks' own LoRAs; without any, a random basis of the same size."""
    if not earlier:
        return Share(random_model(Workbench([job], numbers)))
    return Share.from_adapters([o.adapter for o in earlier], k=numbers.k, seed=numbers.seed)


def lora_curve(job: TaskJob, numbers: Any, every: int) -> Curve:
    """The task's own LoRA from scratch."""
    model = add_lora(job.model().requires_grad_(False), numbers, job.heads)
    watch = Watch(model, job.score, every)
    training = replace(numbers.lora, seed=numbers.seed)
    fit(model, job.data, training, replace(job.setup, callbacks=[watch]))
    return watch.curve


def core_curve(job: TaskJob, share: Share, numbers: Any, every: int) -> Curve:
    """The task learned in a subspace."""
    method = Method(
        p=numbers.p,
        phi=numbers.phi,
        form=numbers.form,
        directions=numbers.directions,
        heads=job.heads,
        seed=numbers.seed,
    )
    training: Training = replace(numbers.coefficients, seed=numbers.seed)
    model = job.model()
    watch = Watch(model, job.score, every)
    # PEFT puts its layers into the model itself, so this is what is trained.
    setup = replace(job.setup, callbacks=[watch])
    learned = adapt(model, share, job.data, training, task=job.name, method=method, setup=setup)
    release(learned.model)
    return watch.curve


def load(folder: Path) -> list[dict[str, Any]]:
    """All results in a folder."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


if __name__ == "__main__":
    main()
