"""The demo's picture."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from sharespace.demo.result import DemoResult
from sharespace.report import demo_picture


def draw(result: DemoResult, path: Path) -> None:
    """Write the picture of a result as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    found, used, tasks = result.measures, result.bytes, result.tasks
    own = fmean(task.own_lora for task in tasks)
    demo_picture(
        path,
        {f"Share: {step.name}": step.scores for step in result.steps},
        {
            "own LoRA": [task.own_lora for task in tasks],
            "head only": [task.head_only for task in tasks],
        },
        [task.name for task in tasks],
        result.sizes,
        "each task adds its head and\nmin(2kp, k²) numbers a layer,\n"
        f"if k = {result.settings['k']} still suffices",
        (
            f"One Share model for {len(tasks)} tasks: mean accuracy {found.accuracy:.1f} % "
            f"(own LoRA adapters {own:.1f} %), forgetting {found.forgetting:.1f} points",
            "Test accuracy in % of every task, after every step",
            f"{len(tasks)} adapters: {used.own_adapters / 1000:.0f} kB, "
            f"one Share model: {used.total / 1000:.0f} kB",
        ),
    )
