"""What a recipe says, once it is read: frozen values, all defaults filled in.

Keys of ``Recipe`` stand at the top, keys of ``TaskSpec`` in a task; those of ``DataSettings``,
``SubspaceSettings`` and ``TrainingSettings`` may stand at the top for all tasks, or in a task for
that one. ``record`` is what is stored of a recipe, and ``refuse_other`` asks whether a stream was
started with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sharespace.errors import RecipeError
from sharespace.learn.settings import TaskMethod, TrainingSettings
from sharespace.options import check_options, option
from sharespace.stream.recipe.values import RecipeSource, keys_of
from sharespace.subspace.basis_methods import DEFAULT_METHOD, method_names

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

Record = Mapping[str, Any]
"""Key -> value, as JSON has it."""


@dataclass(frozen=True)
class DataSettings:
    """What a task's data holds, and how much of it is used."""

    task_type: TaskType = option("text-classification")
    """What is learned; it decides the model's head, the columns and the metric."""
    train_split: str = option("train")
    """Split to learn from; a single file is the split `train`."""
    eval_split: str | None = option(None)
    """Split to score on; left out: the first of `validation`, `valid`, `dev`, `eval`, `test`
    that the data has."""
    eval_fraction: float | None = option(None, above=0, below=1)
    """Part of the train split that is set aside for scoring, chosen by `seed`, where the data has
    no other split."""
    max_train_examples: int | None = option(None, least=1)
    """Learn from this many examples at most, chosen by `seed`."""
    max_eval_examples: int | None = option(None, least=1)
    """Score on this many examples at most, chosen by `seed`."""
    text: str = option("text")
    """Column of the text; for `causal-lm` without `prompt`: all of it is learned."""
    text2: str | None = option(None)
    """Column of the second text of a pair; left out: `text2` where the data has that column."""
    prompt: str | None = option(None)
    """`causal-lm` only: column of the text that is given; it is not learned."""
    completion: str | None = option(None)
    """`causal-lm` only: column of the text that is learned after the prompt."""
    image: str = option("image")
    """`image-classification` only: column of the image."""
    label: str = option("label")
    """Column of the label; a number for `regression`."""
    metric: MetricName | None = option(None)
    """The score; left out: `accuracy` for classification, `pearson_spearman` (their mean) for
    `regression`, `loss` for `causal-lm`."""
    max_length: int = option(256, least=4)
    """Tokens of an example; longer ones are cut."""

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def score(self) -> MetricName:
        """The metric, by the task's type where none is named."""
        return self.metric or DEFAULT_METRICS[self.task_type]


@dataclass(frozen=True, kw_only=True)
class SubspaceSettings(TaskMethod):
    """The subspace and how a task is learned in it (see Concepts)."""

    k: int = option(32, least=1)
    """Cap of the subspace dimension of every layer and side."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task of the stream: an adapter, data, or both."""

    name: str = option()
    """Name of the task in the Share model."""
    data: RecipeSource | None = option(None)
    """A file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.txt`, also with `.gz`), a folder
    with one file for each split, a folder of images by class, or a data set on the Hub."""
    data_config: str | None = option(None)
    """Configuration (subset) of a data set on the Hub, for example `rte` of `nyu-mll/glue`."""
    data_revision: str | None = option(None)
    """Branch, tag or commit of a data set on the Hub."""
    eval_data: RecipeSource | None = option(None)
    """A file to score on, beside a `data` that has no split for it."""
    eval_only: bool = option(False)
    """The data only scores the adapter; nothing is learned."""
    labels: tuple[str, ...] | None = option(None)
    """Names of the classes in order; left out: the data's own, a file `labels.txt` in its folder,
    or the values met in the train split, sorted."""
    adapter: RecipeSource | None = option(None)
    """A LoRA adapter: a path or Hub id. Alone it is merged as it is; with `data` learning starts
    from it."""
    settings: DataSettings = field(default_factory=DataSettings)
    subspace: SubspaceSettings = field(default_factory=SubspaceSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    seed: int = 0
    """Seed of the recipe."""
    line: int | None = field(default=None, compare=False)
    """Line of the recipe's file in which the task starts."""

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def learns(self) -> bool:
        """True where something is trained: it has data that is not for scoring only."""
        return self.data is not None and not self.eval_only


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A stream of tasks on one base model."""

    base: RecipeSource = option()
    """The base model: a path or Hub id."""
    base_revision: str | None = option(None)
    """Branch, tag or commit of a base model on the Hub."""
    share: Path = option(neutral=True)
    """Folder of the Share model that the stream writes; a version after each task."""
    seed: int = option(0, least=0)
    """Seed of everything random: starts, order of examples, dropout, choice of examples."""
    dtype: Dtype = option("float32")
    """Number format in which the base model is loaded."""
    store_dtype: Dtype | None = option(None)
    """Number format in which the Share model is stored; left out: as its adapters are."""
    method: str = option(DEFAULT_METHOD, choices=method_names)
    """How the subspace is found: `joint`, or `share` as the paper has it."""
    variance: float | None = option(None, above=0, most=1)
    """The first subspace takes the smallest k that explains this part of its tasks (never above
    `k`); left out: `k`."""
    initial: int = option(1, least=1)
    """The first subspace is made of this many tasks: of their adapters, or of LoRAs trained here
    from their data."""
    lora_rank: int = option(8, least=1)
    """r of the LoRAs of the initial tasks."""
    lora_alpha: float = option(16.0, above=0)
    """Scaling of these LoRAs times r."""
    lora_dropout: float = option(0.0, least=0, below=1)
    """Dropout before these LoRAs."""
    lora_learning_rate: float = option(5e-4, above=0)
    """Learning rate of these LoRAs."""
    target_modules: tuple[str, ...] | None = option(None)
    """Modules that these LoRAs adapt: names' ends, or `all-linear`; left out: PEFT's choice for
    the base model. Other tasks adapt the modules of the subspace."""
    finetune: bool = option(False)
    """Train each task's coefficients once more after its merge, in the subspace as it is then
    (the paper's Share-full)."""
    finetune_max_steps: int = option(100, least=1)
    """Steps of that training."""
    finetune_learning_rate: float = option(1e-3, above=0)
    """Learning rate of that training."""
    router: bool = option(False)
    """Make a router that finds the task of an input, and score it too."""
    tasks: tuple[TaskSpec, ...] = ()
    file: Path | None = field(default=None, compare=False)
    """Where it was read from."""

    def __post_init__(self) -> None:
        check_options(self)

    def task(self, name: str) -> TaskSpec | None:
        """The task of that name; None: there is none."""
        return next((t for t in self.tasks if t.name == name), None)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over everything that changes results, the tasks included.

        Paths count as they are written, so that a recipe may move together with its data.
        """
        text = json.dumps(record(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def record(recipe: Recipe) -> dict[str, Any]:
    """All that changes results, as JSON values: to be stored beside them.

    ``{"recipe": {key: value}, "tasks": [{key: value}]}``; paths as they are written.
    """
    return {"recipe": _values(recipe), "tasks": [_task(t) for t in recipe.tasks]}


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
    groups = (spec, spec.settings, spec.subspace, spec.training)
    return {name: value for group in groups for name, value in _values(group).items()}


def _values(group: object) -> dict[str, Any]:
    """Key -> value, of the keys that change results."""
    keys = keys_of(type(group))
    return {name: _plain(getattr(group, name)) for name in keys if not keys[name].neutral}


def _plain(value: object) -> object:
    """A value as JSON has it; a source as it is written, so that data may move."""
    if isinstance(value, RecipeSource):
        return value.text
    return list(value) if isinstance(value, tuple) else value


def _defaults(keyed: Recipe | TaskSpec) -> dict[str, Any]:
    """Key -> default, of the keys that have one."""
    groups: list[type] = [type(keyed)]
    if isinstance(keyed, TaskSpec):
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


def _show(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
