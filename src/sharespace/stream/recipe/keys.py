"""What a recipe says, once it is read: frozen values, all defaults filled in.

Keys that stand at the top of a recipe for all tasks, or in a task for that one.

Is this the recipe that a stream was started with?
"""

# ruff: noqa: RUF009 (key is dataclasses.field with limits)
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from sharespace.errors import RecipeError
from sharespace.extras import require
from sharespace.stream.recipe.values import RecipeSource, key, keys_of

Dtype = Literal["float32", "bfloat16", "float16"]

TaskType = Literal["text-classification", "regression", "causal-lm", "image-classification"]

MetricName = Literal[
    "accuracy",
    "f1",
    "macro_f1",
    "matthews",
    "pearson",
    "spearman",
    "pearson_spearman",
    "mse",
    "rouge_l",
    "exact_match",
    "loss",
    "perplexity",
]

DEFAULT_METRICS: dict[TaskType, MetricName] = {
    "text-classification": "accuracy",
    "regression": "pearson_spearman",
    "causal-lm": "loss",
    "image-classification": "accuracy",
}

METRICS: dict[TaskType, tuple[MetricName, ...]] = {
    "text-classification": ("accuracy", "f1", "macro_f1", "matthews", "loss"),
    "regression": ("pearson", "spearman", "pearson_spearman", "mse"),
    "causal-lm": ("loss", "perplexity", "rouge_l", "exact_match"),
    "image-classification": ("accuracy", "f1", "macro_f1", "matthews", "loss"),
}
"""What can be measured of each type."""

_NOT_OF_TRAINER = (
    "early_stopping_patience",
    "early_stopping_threshold",
    "eval_steps",
    "head_learning_rate",
)

Record = Mapping[str, Any]


@dataclass(frozen=True)
class DataSettings:
    """What a task's data holds, and how much of it is used."""

    task_type: TaskType = key("text-classification")
    """What is learned; it decides the model's head, the columns and the metric."""
    train_split: str = key("train")
    """Split to learn from; a single file is the split `train`."""
    eval_split: str | None = key(None)
    """Split to score on; left out: the first of `validation`, `valid`, `dev`, `eval`, `test`
    that the data has."""
    eval_fraction: float | None = key(None, above=0, below=1)
    """Part of the train split that is set aside for scoring, chosen by `seed`, where the data has
    no other split."""
    max_train_examples: int | None = key(None, least=1)
    """Learn from this many examples at most, chosen by `seed`."""
    max_eval_examples: int | None = key(None, least=1)
    """Score on this many examples at most, chosen by `seed`."""
    text: str = key("text")
    """Column of the text; for `causal-lm` without `prompt`: all of it is learned."""
    text2: str | None = key(None)
    """Column of the second text of a pair; left out: `text2` where the data has that column."""
    prompt: str | None = key(None)
    """`causal-lm` only: column of the text that is given; it is not learned."""
    completion: str | None = key(None)
    """`causal-lm` only: column of the text that is learned after the prompt."""
    image: str = key("image")
    """`image-classification` only: column of the image."""
    label: str = key("label")
    """Column of the label; a number for `regression`."""
    metric: MetricName | None = key(None)
    """The score; left out: `accuracy` for classification, `pearson_spearman` (their mean) for
    `regression`, `loss` for `causal-lm`."""
    max_length: int = key(256, least=4)
    """Tokens of an example; longer ones are cut."""

    @property
    def score(self) -> MetricName:
        """The metric, by the task's type where none is named."""
        return self.metric or DEFAULT_METRICS[self.task_type]


@dataclass(frozen=True)
class SubspaceSettings:
    """The subspace and how a task is learned in it (see Concepts)."""

    k: int = key(32, least=1)
    """Cap of the subspace dimension of every layer and side."""
    p: int = key(8, least=1)
    """Pseudo-rank of a task that is learned: columns of its coefficients; at most `k`."""
    phi: int = key(2, least=0)
    """Temporary directions a side while a task is learned; 0 trains coefficients only."""
    form: Literal["factors", "core"] = key("factors")
    """What a task trains: the `factors` of its coefficients and the temporary directions, or one
    `core` of p x p numbers between p frozen directions a side, `phi` of them temporary."""
    directions: Literal["random", "gradient"] = key("random")
    """How the directions of the form `core` are chosen: `gradient` takes those in which the loss
    falls fastest, after `head_steps`."""
    head_steps: int = key(0, least=0)
    """Steps in which the head alone is trained before all else."""
    start: Literal["zero", "mean", "nearest"] = key("zero")
    """Coefficients that learning starts from: none, the mean of the known tasks', or those of the
    nearest known task. A task that has an adapter too starts from that."""


@dataclass(frozen=True)
class TrainingSettings:
    """Keys of transformers' `TrainingArguments` under their own names; the two `early_stopping`
    keys are those of its `EarlyStoppingCallback`, and `head_learning_rate` is our own."""

    learning_rate: float = key(4e-3, above=0)
    """Of coefficients, temporary directions and the head: far above that of a LoRA."""
    head_learning_rate: float | None = key(None, above=0)
    """Of the head; none: the same. A core wants rates that are far too high for a head."""
    num_train_epochs: float = key(10.0, above=0)
    """Passes over the train split."""
    max_steps: int = key(-1, least=-1)
    """Steps in all; -1: as many as `num_train_epochs` needs."""
    per_device_train_batch_size: int = key(32, least=1)
    """Examples of a step on each device."""
    per_device_eval_batch_size: int = key(64, neutral=True, least=1)
    """Examples at once when scoring."""
    gradient_accumulation_steps: int = key(1, least=1)
    """Batches whose gradients are added up to one step."""
    weight_decay: float = key(0.1, least=0)
    """Of AdamW."""
    warmup_ratio: float = key(0.06, least=0, below=1)
    """Part of the steps over which the learning rate rises; for `warmup_steps` 0."""
    warmup_steps: int = key(0, least=0)
    """Steps over which the learning rate rises; goes before `warmup_ratio`."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = key("linear")
    """How the learning rate goes on after the warm-up."""
    max_grad_norm: float = key(1.0, least=0)
    """Longer gradients are scaled down to this norm; 0: never."""
    label_smoothing_factor: float = key(0.0, least=0, below=1)
    """Part of a label's weight that is spread over all labels."""
    bf16: bool = key(False)
    """Compute in bfloat16 (autocast)."""
    fp16: bool = key(False)
    """Compute in float16 (autocast with loss scaling)."""
    gradient_checkpointing: bool = key(False, neutral=True)
    """Compute activations again in the backward pass: less memory, more time."""
    early_stopping_patience: int | None = key(None, least=1)
    """Stop after this many evaluations without a better score and take the best state; left out:
    train to the end and take the last."""
    early_stopping_threshold: float = key(0.0, least=0)
    """How much better counts as better."""
    eval_steps: int | None = key(None, least=1)
    """Steps between evaluations for early stopping; left out: one after each epoch."""
    logging_steps: int = key(50, neutral=True, least=1)
    """Steps between two entries to the trackers."""
    dataloader_num_workers: int = key(0, neutral=True, least=0)
    """Processes that prepare batches."""
    report_to: tuple[str, ...] = key((), neutral=True)
    """Trackers: `tensorboard`, `wandb`, `mlflow`, `trackio` and others that transformers knows."""
    use_cpu: bool = key(False, neutral=True)
    """Stay on the CPU even where there is an accelerator."""

    def arguments(self) -> dict[str, Any]:
        """Keywords for ``TrainingArguments``; early stopping is a callback and left out.

        Raises:
            MissingExtraError: transformers is not installed.
        """
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in _NOT_OF_TRAINER:
            del found[name]
        known = {f.name for f in fields(require("transformers", "train").TrainingArguments)}
        ratio, recompute = found.pop("warmup_ratio"), found.pop("gradient_checkpointing")
        if not self.warmup_steps and ratio:
            # transformers 5 has one key for both: steps below 1 are a part of all steps.
            found["warmup_ratio" if "warmup_ratio" in known else "warmup_steps"] = ratio
        if recompute:
            new = "activation_checkpointing"
            found[new if new in known else "gradient_checkpointing"] = True
        return {**found, "report_to": list(self.report_to) or "none"}


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task of the stream: an adapter, data, or both."""

    name: str = key()
    """Of the task in the Share model."""
    data: RecipeSource | None = key(None)
    """A file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.txt`, also with `.gz`), a folder
    with one file for each split, a folder of images by class, or a data set on the Hub."""
    data_config: str | None = key(None)
    """Configuration (subset) of a data set on the Hub, for example `rte` of `nyu-mll/glue`."""
    data_revision: str | None = key(None)
    """Branch, tag or commit of a data set on the Hub."""
    eval_data: RecipeSource | None = key(None)
    """A file to score on, beside a `data` that has no split for it."""
    eval_only: bool = key(False)
    """The data only scores the adapter; nothing is learned."""
    labels: tuple[str, ...] | None = key(None)
    """Names of the classes in order; left out: the data's own, a file `labels.txt` in its folder,
    or the values met in the train split, sorted."""
    adapter: RecipeSource | None = key(None)
    """A LoRA adapter: a path or Hub id. Alone it is merged as it is; with `data` learning starts
    from it."""
    settings: DataSettings = field(default_factory=DataSettings)
    subspace: SubspaceSettings = field(default_factory=SubspaceSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    seed: int = 0
    """Of the recipe."""
    line: int | None = field(default=None, compare=False)
    """Of the file, where it starts."""

    @property
    def learns(self) -> bool:
        """Something is trained: it has data that is not for scoring only."""
        return self.data is not None and not self.eval_only


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A stream of tasks on one base model."""

    base: RecipeSource = key()
    """The base model: a path or Hub id."""
    base_revision: str | None = key(None)
    """Branch, tag or commit of a base model on the Hub."""
    share: Path = key(neutral=True)
    """Folder of the Share model that the stream writes; a version after each task."""
    seed: int = key(0, least=0)
    """Of everything random: starts, order of examples, dropout, choice of examples."""
    dtype: Dtype = key("float32")
    """In which the base model is loaded."""
    store_dtype: Dtype | None = key(None)
    """In which the Share model is stored; left out: as its adapters are."""
    method: Literal["joint", "share"] = key("joint")
    """How the subspace is found: `joint`, or `share` as the paper has it."""
    variance: float | None = key(None, above=0, most=1)
    """The first subspace takes the smallest k that explains this part of its tasks (never above
    `k`); left out: `k`."""
    initial: int = key(1, least=1)
    """The first subspace is made of this many tasks: of their adapters, or of LoRAs trained here
    from their data."""
    lora_rank: int = key(8, least=1)
    """r of the LoRAs of the initial tasks."""
    lora_alpha: float = key(16.0, above=0)
    """Scaling of these LoRAs times r."""
    lora_dropout: float = key(0.0, least=0, below=1)
    """Dropout before these LoRAs."""
    lora_learning_rate: float = key(5e-4, above=0)
    """Of these LoRAs."""
    target_modules: tuple[str, ...] | None = key(None)
    """Modules that these LoRAs adapt: names' ends, or `all-linear`; left out: PEFT's choice for
    the base model. Other tasks adapt the modules of the subspace."""
    finetune: bool = key(False)
    """Train each task's coefficients once more after its merge, in the subspace as it is then
    (the paper's Share-full)."""
    finetune_max_steps: int = key(100, least=1)
    """Steps of that."""
    finetune_learning_rate: float = key(1e-3, above=0)
    """Learning rate of that."""
    router: bool = key(False)
    """Make a router that finds the task of an input, and score it too."""
    tasks: tuple[TaskSpec, ...] = ()
    file: Path | None = field(default=None, compare=False)
    """Where it was read from."""

    def task(self, name: str) -> TaskSpec | None:
        """The task of that name."""
        return next((t for t in self.tasks if t.name == name), None)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over everything that changes results, the tasks included.

        Paths count as they are written, so that a recipe may move together with its data.
        """

        return fingerprint(self)


def record(recipe: Recipe) -> dict[str, Any]:
    """All that changes results, as JSON values: to be stored beside them.

    ``{"recipe": {key: value}, "tasks": [{key: value}]}``; paths as they are written.
    """
    return {"recipe": _values(recipe), "tasks": [_task(t) for t in recipe.tasks]}


def fingerprint(recipe: Recipe) -> str:
    """sha256 (hex) of the record."""
    text = json.dumps(record(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_other(recipe: Recipe, stored: Record, done: int | None = None) -> None:
    """Refuse to go on with a stream under a recipe that would have led elsewhere.

    Tasks may be appended at the end; a key that the record does not have (a later release's) must
    have its default.

    Args:
        recipe: as it is now.
        stored: ``record`` of the recipe that the stream was started with.
        done: only this many first tasks must be as they were; None: all of the record's.

    Raises:
        RecipeError: it differs; each key that does is named.
    """
    problems = list(_differences("", stored["recipe"], _values(recipe), _defaults(recipe)))
    before = list(stored["tasks"])[:done]
    if len(before) > len(recipe.tasks):
        gone = [t["name"] for t in before[len(recipe.tasks) :]]
        problems.append(f"tasks: {', '.join(map(repr, gone))} no longer there")
    for spec, then in zip(recipe.tasks, before, strict=False):
        where = f"task {then['name']!r}, "
        problems += _differences(where, then, _task(spec), _defaults(spec))
    if problems:
        raise RecipeError(
            str(recipe.file or "recipe"),
            tuple(problems),
            "The stream was started with another recipe: take that one and append tasks at its "
            "end, or start anew with another share",
        )


def _task(spec: TaskSpec) -> dict[str, Any]:
    parts = (spec, spec.settings, spec.subspace, spec.training)
    return {name: value for part in parts for name, value in _values(part).items()}


def _values(part: Any) -> dict[str, Any]:
    found = keys_of(type(part))
    return {name: _plain(getattr(part, name)) for name in found if not found[name].neutral}


def _plain(value: Any) -> Any:
    if isinstance(value, RecipeSource):
        return value.text
    return list(value) if isinstance(value, tuple) else value


def _defaults(part: Recipe | TaskSpec) -> dict[str, Any]:
    groups: list[type] = [type(part)]
    if isinstance(part, TaskSpec):
        groups += [DataSettings, SubspaceSettings, TrainingSettings]
    known = (k for group in groups for k in keys_of(group).values())
    return {k.name: _plain(k.default) for k in known if not k.needed}


def _differences(where: str, then: Record, now: Record, defaults: Record) -> Iterator[str]:
    for name in sorted({*then, *now}):
        before = then.get(name, defaults.get(name))
        after = now.get(name)
        if name not in now:
            yield f"{where}{name}: {_show(before)} then; this release has no such key"
        elif before != after:
            yield f"{where}{name}: {_show(before)} then, {_show(after)} now"


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
