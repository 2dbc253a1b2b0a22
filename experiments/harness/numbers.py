"""The numbers that an experiment trains with, and what the command line changes of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sharespace.compare import ComparisonSettings
from sharespace.learn import TaskMethod, TrainingSettings

VARIED = {
    "k": (int, "another cap; default: room for all tasks"),
    "p": (int, "another size of the cores"),
    "phi": (int, "another number of new directions a task"),
    "rank": (int, "another rank of own LoRAs"),
    "lora": (float, "another learning rate of LoRA"),
    "core-rate": (float, "another learning rate of the cores"),
}
"""Option -> its type and what it is."""


@dataclass(frozen=True)
class Numbers:
    """What an experiment trains with, for all methods."""

    steps: int
    """Of the training of one task."""
    batch_size: int
    lora: float
    """Learning rate of LoRA; the other methods use it, too."""
    core: float
    """Learning rate of the cores that are learned in the subspace."""
    p: int
    """Directions a side of a core."""
    phi: int
    """How many of them are new ones, which the gradient chooses."""
    targets: Sequence[str]
    """Modules that are adapted."""
    initial: int = 3
    """Tasks that come as adapters and make the first subspace."""
    rank: int = 8
    alpha: int = 16
    head: float | None = 1e-3
    """Learning rate of the heads; None: that of what is trained with them."""
    finetune: bool = True
    """Share-full is possible: its last step has half the steps at rate 2e-3."""
    osf: float | None = 1e-4
    """Learning rate of OSF; None: that of LoRA."""
    held_out: float = 0.0
    """Part of a task's examples that Share-full sets aside to judge its last step."""
    bf16: bool = False
    """Compute in bfloat16 (autocast)."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of the Trainer."""

    def settings(self, seed: int, tasks: int) -> ComparisonSettings:
        """What the baselines take; the cap k has room for all tasks, so that no merge cuts."""
        return ComparisonSettings(
            # The heads are trained already, where there are any: this is as good as nothing.
            head=self._training(1e-6, 1),
            lora=self._training(self.lora),
            coefficients=self._training(self.core),
            finetune=self._training(2e-3, max(self.steps // 2, 1)) if self.finetune else None,
            held_out=self.held_out,
            osf=None if self.osf is None else self._training(self.osf),
            targets=list(self.targets),
            rank=self.rank,
            lora_alpha=self.alpha,
            k=room(self.initial, self.rank, self.phi, tasks),
            method=TaskMethod(
                p=self.p,
                phi=self.phi,
                form="core",
                directions="gradient",
                head_steps=0,
                start="zero",
            ),
            initial=self.initial,
            seed=seed,
        )

    def _training(self, rate: float, steps: int | None = None) -> TrainingSettings:
        return TrainingSettings(
            max_steps=self.steps if steps is None else steps,
            learning_rate=rate,
            head_learning_rate=self.head,
            per_device_train_batch_size=self.batch_size,
            weight_decay=0.0,
            use_cpu=True,
            bf16=self.bf16,
            lr_scheduler_type="cosine",
            arguments=dict(self.arguments),
        )


def room(initial: int, rank: int, phi: int, tasks: int) -> int:
    """Directions that the first tasks' LoRAs and the new ones of all others fill exactly."""
    return initial * rank + max(tasks - initial, 0) * phi


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``run`` may change."""
    for name, (kind, said) in VARIED.items():
        parser.add_argument(f"--{name}", type=kind, help=said)


def is_varied(options: argparse.Namespace) -> bool:
    """True where anything was changed."""
    return any(_value(options, name) is not None for name in VARIED)


def vary(
    settings: ComparisonSettings, options: argparse.Namespace, tasks: int
) -> ComparisonSettings:
    """The settings with what the command line changes; k has room for all, unless it is given."""
    changed = {n: _value(options, n) for n in ("k", "p", "phi", "rank")}
    changed = {name: value for name, value in changed.items() if value is not None}
    of_method = {name: changed.pop(name) for name in ("p", "phi") if name in changed}
    method = replace(settings.method, **of_method)
    # LoRAs of another rank are not compressed: Share's first tasks have the usual one.
    space = room(settings.initial, settings.rank, method.phi or 0, tasks)
    varied = replace(settings, method=method, **{"k": space, **changed})
    for option, part in (("lora", "lora"), ("core-rate", "coefficients")):
        rate = _value(options, option)
        if rate is not None:
            training = replace(getattr(varied, part), learning_rate=rate)
            varied = replace(varied, **{part: training})
    return varied


def own_folder(folder: Path, options: argparse.Namespace) -> Path:
    """Where own LoRAs are kept: those that are not the settings' apart from those that are."""
    changed = [f"{n}{_value(options, n)}" for n in ("rank", "lora") if _value(options, n)]
    return folder.with_name("-".join([folder.name, *changed]))


def _value(options: argparse.Namespace, name: str) -> Any:
    return getattr(options, name.replace("-", "_"), None)
