"""Forward transfer: is a new task learned sooner in the subspace of more earlier tasks?

    python -m experiments transfer text_stream --data DATA/text --seeds 0 1 2

For each new task: its own LoRA from scratch, and one core in the subspace of the own LoRAs of 0, 1,
3 and 6 other tasks of the first order (0: a random basis of the same size), everything else the
same. Scored every few steps on the test examples; the table says when a curve first reaches a part
of what own LoRA reaches at its end. After ``run``, which leaves the own LoRAs in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import transformers
from benchmarks.common import environment
from torch import nn

from experiments.harness.experiment import Experiment, opened, parser
from experiments.harness.markdown import section
from experiments.harness.results import write
from experiments.harness.tables import spread
from experiments.harness.training import subspace, train_lora, trained_core, with_lora
from sharespace.compare import ComparisonSettings, OwnLora, TaskJob
from sharespace.compare.figures import PALE, Panel, look, picture, tidy

EARLIER = (0, 1, 3, 6)
"""Tasks whose own LoRAs make the subspace."""
PARTS = (0.95, 1.0)
"""Of own LoRA's last score."""
OF_GAIN = 0.8


def main(kind: type[Experiment], arguments: Sequence[str]) -> None:
    """The stage, as from the command line."""
    choices = parser(kind, __doc__)
    choices.add_argument("--targets", nargs="+", help="new tasks; default: the experiment's")
    choices.add_argument("--every", type=int, default=20, help="steps between scores")
    options = choices.parse_args(arguments)
    experiment: Experiment = opened(kind, options)
    every = 1 if options.quick else options.every
    order = next(iter(experiment.orders.values()))
    for seed in options.seeds:
        for target in options.targets or experiment.new_tasks:
            file = experiment.results("transfer") / f"{target}-{seed}.json"
            if not file.is_file():
                earlier = experiment.own_loras([t for t in order if t != target], seed)
                settings = experiment.settings(seed, len(order))
                about = {"base": options.base} if kind.bases else {}
                job = experiment.job(target, seed)
                write(file, {**about, **measure(job, settings, earlier, every)})


class Watch(transformers.TrainerCallback):
    """Scores a model every few steps of its training."""

    def __init__(self, model: nn.Module, job: TaskJob, every: int) -> None:
        self.model, self.job, self.every = model, job, every
        self.steps: list[int] = []
        self.scores: list[float] = []

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.model.eval()
            self.steps.append(state.global_step)
            self.scores.append(self.job.score(self.model))
            self.model.train()

    @property
    def curve(self) -> dict[str, Any]:
        """Scores by steps, as the results file has them."""
        return {"steps": self.steps, "scores": self.scores}


def measure(
    job: TaskJob, settings: ComparisonSettings, earlier: Mapping[str, OwnLora], every: int
) -> dict[str, Any]:
    """All curves of one new task.

    Args:
        job: the new task.
        settings: of LoRA and core.
        earlier: own LoRAs of other tasks, in order.
        every: steps between scores.
    """
    model = with_lora(job, settings)
    watch = Watch(model, job, every)
    train_lora(job, settings, model, [watch])
    curves = {"own LoRA": watch.curve}
    for count in EARLIER:
        share = subspace(job, settings, list(earlier.values())[:count])
        model = job.model()
        watch = Watch(model, job, every)
        with trained_core(job, settings, share, model, [watch]):
            curves[f"{count} earlier"] = watch.curve
        last = watch.scores[-1]
        print(f"{job.name} seed {settings.seed}, {count} earlier tasks: {last:.1f}", flush=True)
    return {
        "task": job.name,
        "seed": settings.seed,
        "earlier": list(earlier),
        "head_only": job.score(job.model()),
        "curves": curves,
        "environment": environment(settings.seed),
    }


def transfer_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Steps until parts of what own LoRA reaches."""
    rows = []
    wanted = [*(partial(part_of_score, part) for part in PARTS), partial(part_of_gain, OF_GAIN)]
    for task in dict.fromkeys(r["task"] for r in records):
        mine = [r for r in records if r["task"] == task]
        for name in records[0]["curves"]:
            cells = [steps_until(mine, name, score) for score in wanted]
            last = spread([r["curves"][name]["scores"][-1] for r in mine])
            where = name if name == "own LoRA" else f"subspace of {name} tasks"
            rows.append([task, where, *cells, last])
    return section(
        "## Forward transfer",
        "Steps until a curve first reaches a part of own LoRA's last score, and until it reaches "
        "80 % of own LoRA's gain over the head alone; mean over the seeds that reach it (how "
        "many).",
        "task | learned in | 95 % of score | 100 % of score | 80 % of gain | last score",
        rows,
    )


def part_of_score(part: float, record: Mapping[str, Any]) -> float:
    """Part of own LoRA's last score."""
    return float(part * record["curves"]["own LoRA"]["scores"][-1])


def part_of_gain(part: float, record: Mapping[str, Any]) -> float:
    """Head alone, and part of own LoRA's gain over it."""
    own = record["curves"]["own LoRA"]["scores"][-1]
    return float(record["head_only"] + part * (own - record["head_only"]))


def steps_until(
    records: Sequence[Mapping[str, Any]], name: str, wanted: Callable[[Mapping[str, Any]], float]
) -> str:
    """Mean of the first step that reaches what is wanted."""
    reached = []
    for record in records:
        points = zip(*record["curves"][name].values(), strict=True)
        reached += [step for step, score in points if score >= wanted(record)][:1]
    if not reached:
        return f"never ({len(records)})"
    return f"{fmean(reached):.0f} ({len(reached)}/{len(records)})"


def draw_transfer(records: Sequence[Mapping[str, Any]], path: Path, score: str) -> None:
    """Score against steps, a panel a new task (its first seed)."""
    first = {(r.get("base", ""), r["task"]): r for r in reversed(records)}
    panels = [
        Panel(
            f"{base}: new task {task}" if base else f"new task {task}",
            partial(_curves, record, score),
        )
        for (base, task), record in sorted(first.items())
    ]
    picture(path, "A new task, learned after 0 to 6 others", panels)


def _curves(record: Mapping[str, Any], score: str, axes: Any) -> None:
    for i, (name, curve) in enumerate(record["curves"].items()):
        colour, mark = look(i)
        label = name if name == "own LoRA" else f"core, {name} tasks"
        axes.plot(curve["steps"], curve["scores"], color=colour, marker=mark, label=label)
    axes.axhline(record["head_only"], color=PALE, linestyle="--", label="head only")
    axes.set_xlabel("training steps")
    axes.set_ylabel(score)
    tidy(axes)
    axes.legend(fontsize="small", frameon=False, loc="best")
