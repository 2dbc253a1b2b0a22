"""What the demo measured: frozen values that go into ``results.json`` as they are."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from sharespace.evaluate import ScoreMatrix, measures
from sharespace.report import SizePoint


@dataclass(frozen=True)
class TaskResult:
    """One task; scores in percent of the test images."""

    name: str
    description: str
    labels: int
    head_only: float
    own_lora: float
    own_lora_trainable: int
    """Numbers trained, the head's included; likewise below."""
    own_lora_bytes: int
    learned: float | None = None
    """Right after training in the subspace, before the merge; None for a finished adapter."""
    learned_trainable: int | None = None


@dataclass(frozen=True)
class StepResult:
    """The Share model after one step."""

    name: str
    scores: tuple[float | None, ...]
    """R[t][i] by task; None for a task that has not come yet."""
    seconds: float
    """Of building or merging alone."""


@dataclass(frozen=True)
class ShareBytes:
    """Size of the final Share model, and of the tasks' own adapters."""

    basis: int
    coefficients: int
    other: int
    """Heads and ledgers."""
    own_adapters: int

    @property
    def total(self) -> int:
        return self.basis + self.coefficients + self.other


@dataclass(frozen=True)
class Measures:
    """As defined in ``sharespace.evaluate.measures``; percent points, and two fractions."""

    accuracy: float
    backward_transfer: float
    forgetting: float
    plasticity: float
    """Mean of R[i][i] - own LoRA."""
    retained: float
    """Mean score at the end / mean score of own LoRA."""
    gain_retained: float | None
    """None where own LoRA gains nothing over the head alone."""


@dataclass(frozen=True)
class DemoResult:
    """One run of the demo."""

    seed: int
    quick: bool
    settings: dict[str, Any]
    environment: dict[str, str]
    base_accuracy: float
    """Of the pretrained model on the plain digits."""
    tasks: tuple[TaskResult, ...]
    steps: tuple[StepResult, ...]
    measures: Measures
    bytes: ShareBytes
    sizes: tuple[SizePoint, ...]
    export_difference: float
    """Largest difference of a logit between the exported adapters, loaded by PEFT, and the Share
    model's own updates, over all tasks."""
    seconds: float

    @property
    def matrix(self) -> list[list[float | None]]:
        """R: one row a step, one column a task."""
        return [list(step.scores) for step in self.steps]

    def save(self, path: Path) -> None:
        """Write all of it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def score_matrix(tasks: Sequence[TaskResult], steps: Sequence[StepResult]) -> ScoreMatrix:
    """R of a run."""
    return ScoreMatrix(
        tuple(task.name for task in tasks),
        tuple(step.name for step in steps),
        tuple(step.scores for step in steps),
    )


def measure(tasks: Sequence[TaskResult], steps: Sequence[StepResult]) -> Measures:
    """The continual-learning measures of a finished run."""
    scores = score_matrix(tasks, steps)
    own, head = {t.name: t.own_lora for t in tasks}, {t.name: t.head_only for t in tasks}
    return Measures(
        accuracy=measures.acc(scores),
        backward_transfer=measures.backward_transfer(scores),
        forgetting=measures.forgetting(scores),
        plasticity=measures.plasticity(scores, own),
        retained=measures.acc(scores) / fmean(own.values()),
        gain_retained=measures.gain_retained(scores.last, own, head),
    )


def environment() -> dict[str, str]:
    """Versions and hardware that the figures depend on."""
    packages = ("sharespace", "torch", "transformers", "peft", "accelerate", "scikit-learn")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads used": str(torch.get_num_threads()),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
