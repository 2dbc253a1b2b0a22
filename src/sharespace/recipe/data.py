"""A task's data, ready for transformers' Trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sharespace.errors import RecipeError
from sharespace.extras import require
from sharespace.recipe.columns import check_columns, inputs, targets
from sharespace.recipe.encode import IGNORED, causal_encoder, image_encoder, text_encoder
from sharespace.recipe.rows import read_rows
from sharespace.recipe.schema import Recipe, TaskSpec
from sharespace.recipe.settings import TaskType
from sharespace.recipe.splits import quiet


@dataclass(frozen=True, eq=False)
class TaskData:
    """What a task learns from and is scored on.

    Its datasets have only the model's inputs and ``labels``: give Trainer
    ``remove_unused_columns=False``.
    """

    train: Any
    """A ``datasets.Dataset`` of encoded rows; None: nothing is learned."""
    eval: Any
    """A ``datasets.Dataset`` of encoded rows."""
    eval_rows: Any
    """The rows of ``eval`` as they were read, in the same order."""
    label_names: tuple[str, ...]
    """Of the classes, by number; empty for regression and language modelling."""
    problem_type: str | None
    """As transformers' configs have it: "single_label_classification", "regression" or None."""
    collator: Any
    """Makes a batch: pads to the longest of its rows."""

    @property
    def num_labels(self) -> int:
        """Outputs of the head; 0: the model has none of its own."""
        return len(self.label_names) or (1 if self.problem_type == "regression" else 0)


def load_processor(recipe: Recipe, task_type: TaskType) -> Any:
    """The base model's tokenizer, or its image processor; one without padding pads with its end.

    Raises:
        RecipeError: the base model has none that can be read.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", "train")
    image = task_type == "image-classification"
    loader = transformers.AutoImageProcessor if image else transformers.AutoTokenizer
    try:
        found = loader.from_pretrained(str(recipe.base), revision=recipe.base_revision)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        what = "image processor" if image else "tokenizer"
        why = f"base: {recipe.base.text!r} has no {what} that can be read ({_line(error)})"
        raise RecipeError(str(recipe.file or "recipe"), (why,), "Check base") from error
    if not image and found.pad_token is None:
        found.pad_token = found.eos_token
    return found


def load_task_data(spec: TaskSpec, processor: Any) -> TaskData:
    """Read, check, choose and encode a task's rows.

    Args:
        spec: a task with data.
        processor: of ``load_processor``.

    Raises:
        RecipeError: data is missing or cannot be used; the message names the row.
        MissingExtraError: ``datasets`` is not installed.
    """
    rows = read_rows(spec)
    check_columns(spec, rows)
    names, labels = targets(spec, rows)
    s = spec.settings
    learned = None
    if rows.train is not None:
        learned = _chosen(_labelled(rows.train, labels.get("train")), s.max_train_examples, spec)
    scored = _chosen(_labelled(rows.eval, labels.get("eval")), s.max_eval_examples, spec)
    kinds = {"regression": "regression", "causal-lm": None}
    return TaskData(
        train=None if learned is None else _encoded(spec, processor, learned),
        eval=_encoded(spec, processor, scored),
        eval_rows=scored,
        label_names=names,
        problem_type=kinds.get(s.task_type, "single_label_classification"),
        collator=_collator(s.task_type, processor),
    )


def _labelled(part: Any, labels: list[Any] | None) -> Any:
    """With the numbers of the classes in the column ``labels``."""
    if labels is None:
        return part
    if "labels" in part.column_names:
        part = part.remove_columns("labels")
    with quiet():  # A part that was set aside is copied, with a bar.
        return part.add_column("labels", labels)


def _chosen(part: Any, most: int | None, spec: TaskSpec) -> Any:
    if most is None or len(part) <= most:
        return part
    return part.shuffle(seed=spec.seed, keep_in_memory=True).select(range(most))


def _encoded(spec: TaskSpec, processor: Any, part: Any) -> Any:
    kind = spec.settings.task_type
    if kind == "image-classification":
        # Encoded when taken: all pixels at once would fill the memory.
        return part.with_transform(image_encoder(spec, processor))
    make = causal_encoder if kind == "causal-lm" else text_encoder
    with quiet():
        return part.map(
            make(spec, processor, inputs(spec, part)),
            batched=True,
            remove_columns=[c for c in part.column_names if c != "labels"],
            keep_in_memory=True,
            load_from_cache_file=False,
            # Of our own: the library would pickle the tokenizer to make one.
            new_fingerprint=f"{part._fingerprint}-encoded",
        )


def _collator(kind: TaskType, processor: Any) -> Any:
    transformers = require("transformers", "train")
    if kind == "image-classification":
        return transformers.default_data_collator
    if kind == "causal-lm":
        return transformers.DataCollatorForSeq2Seq(processor, label_pad_token_id=IGNORED)
    return transformers.DataCollatorWithPadding(processor)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
