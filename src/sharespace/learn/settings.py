"""How a task is parametrised (``TaskMethod``) and how it is trained (``TrainingSettings``).

Both are plain dataclasses, so that a recipe or a comparison is checked where neither PEFT nor
transformers is installed. The docstrings under the fields are the texts of the recipe reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.options import check_options, option


@dataclass(frozen=True, kw_only=True)
class TaskMethod:
    """What a new task trains in a Share model's subspace (docs/method.md, "Step 2: learn a
    new task").

    Raises:
        OptionError: a value is out of range, or two of them contradict each other.
    """

    p: int | None = option(None, least=1)
    """Pseudo-rank of a task that is learned: directions a side of its core, or columns of its
    coefficients. Left out: of a core so many that p x p is a twentieth of the numbers of a LoRA of
    rank 8, at least 8; of `factors` 8. No more than `k` and `phi` leave room for."""
    phi: int | None = option(None, least=0)
    """Temporary directions a side while a task is learned; 0: none. Left out: a third of p, on
    each side as far as it has room outside of the subspace; of `factors` 2."""
    form: Literal["factors", "core"] = option("core")
    """What a task trains: one `core` of p x p numbers between p frozen directions a side, `phi` of
    them temporary, or the `factors` of its coefficients and the temporary directions."""
    directions: Literal["random", "gradient"] | None = option(None)
    """How the directions of the form `core` are chosen: `gradient` (left out: this) takes those in
    which the loss falls fastest, after `head_steps`."""
    head_steps: int | None = option(None, least=0)
    """Steps in which new heads alone are trained before all else. Left out: a fifth of the steps
    where directions are chosen by the gradient, else none."""
    start: str = option("auto")
    """Known tasks that learning starts from, as a frozen part of the new one: `zero` (none), the
    `mean` of all, the known task of that name, or `auto`: what has the least loss on held-out
    examples, and `zero` where that is not clearly less. A task that has an adapter too starts from
    that."""
    known: int = option(0, least=0)
    """Known tasks that are mixed in with trained weights, one number a task and module: those
    whose updates lower the loss fastest. 0: the weights of the start are not trained."""
    heads: Sequence[str] | None = option(None, in_recipe=False)
    """Names of the modules that are trained whole; empty for none. None: what the model has beside
    its backbone, such as a classifier; a language model has none."""
    dropout: float = option(0.0, in_recipe=False, least=0, below=1)
    """Probability with which an input of the update is dropped."""
    seed: int = option(0, in_recipe=False, least=0)
    """Seed of the random start."""
    task_type: str | None = option(None, in_recipe=False)
    """PEFT's name for the kind of task, such as `SEQ_CLS`; None wraps the model without changes."""
    component: str | None = option(None, in_recipe=False)
    """Component of a pipeline that the model is, such as `unet`; None: it is a whole model."""

    def __post_init__(self) -> None:
        check_options(self)
        if isinstance(self.heads, str):
            # A text is a sequence of letters, each of which would be looked for in the model.
            raise OptionError(f"heads={self.heads!r}", "is one text", f"Give ({self.heads!r},)")
        if self.heads is not None:
            object.__setattr__(self, "heads", tuple(self.heads))
        given = self.p is not None and self.phi is not None
        if self.form == "core" and given and (self.phi or 0) > (self.p or 0):
            raise OptionError(
                f"phi={self.phi}",
                f"the core has p={self.p} directions a side, and phi of them are temporary",
                "Give a smaller phi, or a larger p",
            )
        if self.directions == "gradient" and self.form != "core":
            raise OptionError(
                "directions='gradient'",
                "they are frozen, and the form 'factors' trains its own",
                "Give form='core'",
            )
        if self.head_steps and self.heads == ():
            raise OptionError(f"head_steps={self.head_steps}", "there are no heads", "Leave it out")
        if self.known and self.start == "mean":
            raise OptionError(
                f"known={self.known}",
                "the mean is of all known tasks, and each would need a weight",
                "Give another start",
            )

    @property
    def uses_gradient(self) -> bool:
        """True where directions are chosen by the gradient: of the form `core`, unless random."""
        return self.form == "core" and self.directions != "random"


AUTO_HEAD_RATE = 1e-3
"""Learning rate of the heads where that of all else is chosen."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train, in the words of transformers' ``TrainingArguments``.

    ``early_stopping_patience`` and ``early_stopping_threshold`` are those of its
    ``EarlyStoppingCallback``; ``head_learning_rate`` is our own.

    Raises:
        OptionError: a value is out of range, or two of them contradict each other.
    """

    learning_rate: float | Literal["auto"] = option("auto", above=0)
    """Learning rate of coefficients, temporary directions and the head: far above that of a
    LoRA. `auto` chooses it by short trainings, on examples that are held out from the task's
    training data."""
    head_learning_rate: float | None = option(None, above=0)
    """Learning rate of the head; left out: the same as `learning_rate`, or 1e-3 where that is
    `auto`. A core wants rates that are far too high for a head."""
    num_train_epochs: float = option(10.0, above=0)
    """Passes over the train split."""
    max_steps: int = option(-1, least=-1)
    """Steps in all; -1: as many as `num_train_epochs` needs."""
    per_device_train_batch_size: int = option(32, least=1)
    """Examples of a step on each device."""
    per_device_eval_batch_size: int = option(64, neutral=True, least=1)
    """Examples at once when scoring."""
    gradient_accumulation_steps: int = option(1, least=1)
    """Batches whose gradients are added up to one step."""
    weight_decay: float = option(0.1, least=0)
    """Weight decay of AdamW."""
    warmup_ratio: float = option(0.06, least=0, below=1)
    """Part of the steps over which the learning rate rises; for `warmup_steps` 0."""
    warmup_steps: float = option(0, least=0)
    """Steps over which the learning rate rises; below 1: part of the steps. Goes before
    `warmup_ratio`."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = option("linear")
    """How the learning rate goes on after the warm-up."""
    max_grad_norm: float = option(1.0, least=0)
    """Longer gradients are scaled down to this norm; 0: never."""
    label_smoothing_factor: float = option(0.0, least=0, below=1)
    """Part of a label's weight that is spread over all labels."""
    bf16: bool = option(False)
    """Compute in bfloat16 (autocast)."""
    fp16: bool = option(False)
    """Compute in float16 (autocast with loss scaling)."""
    gradient_checkpointing: bool = option(False, neutral=True)
    """Compute activations again in the backward pass: less memory, more time."""
    early_stopping_patience: int | None = option(None, least=1)
    """Stop after this many evaluations without a better score and take the best state; left out:
    train to the end and take the last."""
    early_stopping_threshold: float = option(0.0, least=0)
    """How much better counts as better."""
    eval_steps: int | None = option(None, least=1)
    """Steps between evaluations; left out: one after each epoch."""
    metric_for_best_model: str = option("loss", in_recipe=False)
    """Evaluation measure that tells which state is better, for example `accuracy` where
    ``Setup.metrics`` returns one."""
    greater_is_better: bool | None = option(None, in_recipe=False)
    """Direction of that measure; None: False where its name ends in `loss`, else True."""
    logging_steps: int = option(50, neutral=True, least=1)
    """Steps between two entries to the trackers."""
    dataloader_num_workers: int = option(0, neutral=True, least=0)
    """Processes that prepare batches."""
    report_to: tuple[str, ...] = option((), neutral=True)
    """Trackers: `tensorboard`, `wandb`, `mlflow`, `trackio` and others that transformers knows."""
    use_cpu: bool = option(False, neutral=True)
    """Stay on the CPU even where there is an accelerator."""
    seed: int = option(0, in_recipe=False, least=0)
    """Seed of the order of the examples and of dropout."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """All else of ``TrainingArguments``, such as ``save_strategy``."""

    def __post_init__(self) -> None:
        check_options(self)
        twice = self.arguments.keys() & {f.name for f in fields(self)}
        if twice:
            name = min(twice)
            raise OptionError(f"arguments[{name!r}]", "has a field of its own", f"Give {name}=...")
        if self.max_steps == 0:
            raise OptionError("max_steps=0", "nothing would be trained", "-1 counts by epochs")
        if self.bf16 and self.fp16:
            raise OptionError("bf16 and fp16", "only one of them can be used", "Leave one out")
        if self.warmup_steps >= 1:
            if self.warmup_steps != int(self.warmup_steps):
                raise OptionError(
                    f"warmup_steps={self.warmup_steps}",
                    "steps are whole numbers",
                    "Give a whole number, or a part of all steps below 1",
                )
            # As a whole number, so that the record of a recipe does not depend on how the number
            # was written.
            object.__setattr__(self, "warmup_steps", int(self.warmup_steps))

    @property
    def rate(self) -> float:
        """``learning_rate`` as a number.

        Raises:
            OptionError: it is ``"auto"``, and nothing has chosen a number yet.
        """
        if isinstance(self.learning_rate, str):
            raise OptionError(
                "learning_rate='auto'",
                "only adapt, finetune, run and the callback AutoRate choose a rate",
                "Give a number, such as learning_rate=4e-3",
            )
        return self.learning_rate

    @property
    def head_rate(self) -> float:
        """Learning rate of the heads, whether or not that of all else is chosen yet."""
        if self.head_learning_rate is not None:
            return self.head_learning_rate
        return AUTO_HEAD_RATE if self.learning_rate == "auto" else self.rate

    def trainer_arguments(self) -> dict[str, object]:
        """Keywords for ``TrainingArguments``, ``arguments`` included, without early stopping.

        Raises:
            MissingExtraError: transformers is not installed.
            OptionError: the learning rate is ``"auto"``, and nothing has chosen a number yet.
        """
        known = {f.name for f in fields(require("transformers", "train").TrainingArguments)}
        values = {name: getattr(self, name) for name in _PASSED_ON}
        values["learning_rate"] = self.rate
        # transformers 5 dropped `warmup_ratio`: warm-up steps below 1 are a part of all steps.
        warmup = self.warmup_steps or self.warmup_ratio
        as_ratio = "warmup_ratio" in known and 0 < warmup < 1
        values["warmup_ratio" if as_ratio else "warmup_steps"] = warmup
        if self.gradient_checkpointing:
            # Left out where it is False: TRL's SFTConfig has True as its own default.
            new = "activation_checkpointing"
            values[new if new in known else "gradient_checkpointing"] = True
        values["report_to"] = list(self.report_to) or "none"
        values["logging_strategy"] = "steps" if self.report_to else "no"
        return {**values, **self.arguments}


_PASSED_ON = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "lr_scheduler_type",
    "max_grad_norm",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "logging_steps",
    "dataloader_num_workers",
    "use_cpu",
    "seed",
)
"""Fields that ``TrainingArguments`` takes as they are."""
