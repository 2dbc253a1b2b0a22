"""A task's data, ready for transformers' Trainer: rows are read, checked, chosen and encoded.

There is one encoder for each kind of task: texts to token numbers, images to pixels. Labels of a
classification become numbers, each of which has a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sharespace.errors import RecipeError
from sharespace.extras import require
from sharespace.learn.training import quiet
from sharespace.protocols import RowTable
from sharespace.stream.metrics import IGNORED
from sharespace.stream.recipe.keys import Recipe, TaskSpec, TaskType
from sharespace.stream.recipe.load import MOST_LABELS, refuse
from sharespace.stream.recipe.splits import TaskRows, read_rows
from sharespace.stream.recipe.values import hint

RowBatch = Mapping[str, Sequence[Any]]
"""Column -> a value for each row, as ``datasets`` gives a batch."""

Encoder = Callable[[RowBatch], dict[str, object]]

TEXT2 = "text2"
"""Column that makes pairs of texts, where data has it and the recipe names no other."""


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
        processor = loader.from_pretrained(str(recipe.base), revision=recipe.base_revision)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        what = "image processor" if image else "tokenizer"
        why = f"base: {recipe.base.text!r} has no {what} that can be read ({_line(error)})"
        raise RecipeError(str(recipe.file or "recipe"), (why,), "Check base") from error
    if not image and processor.pad_token is None:
        processor.pad_token = processor.eos_token
    return processor


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


def _labelled(part: RowTable, labels: list[object] | None) -> RowTable:
    """With the numbers of the classes in the column ``labels``."""
    if labels is None:
        return part
    if "labels" in part.column_names:
        part = part.remove_columns("labels")
    with quiet():  # A part that was set aside is copied, with a bar.
        return part.add_column("labels", labels)


def _chosen(part: RowTable, most: int | None, spec: TaskSpec) -> RowTable:
    """So many rows at most, chosen by the seed."""
    if most is None or len(part) <= most:
        return part
    return part.shuffle(seed=spec.seed, keep_in_memory=True).select(range(most))


def _encoded(spec: TaskSpec, processor: Any, part: RowTable) -> RowTable:
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


def text_encoder(spec: TaskSpec, tokenizer: Any, columns: Sequence[str]) -> Encoder:
    """A text or a pair; the longer of a pair is cut first. Labels come from ``labels``."""
    length = longest(spec, tokenizer)

    def encode(batch: RowBatch) -> dict[str, object]:
        columns_of_texts = [texts(spec, column, batch[column]) for column in columns]
        encoded = dict(tokenizer(*columns_of_texts, truncation=True, max_length=length))
        return {**encoded, "labels": list(batch["labels"])}

    return encode


def causal_encoder(spec: TaskSpec, tokenizer: Any, columns: Sequence[str]) -> Encoder:
    """A text, all of it learned; or a prompt, whose labels are ``IGNORED``, and a completion.

    Each ends with the tokenizer's end of text, where it has one. Where both are too long, the
    completion is cut to the length, and what of the prompt is nearest to it fills the rest.
    """
    length = longest(spec, tokenizer)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def one(prompt: str, completion: str) -> tuple[list[int], list[int]]:
        given = _without(end, tokenizer(prompt)["input_ids"]) if prompt else []
        learned = tokenizer(completion, add_special_tokens=not prompt)["input_ids"]
        learned = [*_without(end, learned)[: length - len(end)], *end]
        given = given[max(0, len(given) + len(learned) - length) :]
        return [*given, *learned], [*[IGNORED] * len(given), *learned]

    def encode(batch: RowBatch) -> dict[str, object]:
        *before, completions = (texts(spec, column, batch[column]) for column in columns)
        prompts = before[0] if before else [""] * len(completions)
        pairs = [one(p, c) for p, c in zip(prompts, completions, strict=True)]
        return {
            "input_ids": [ids for ids, _ in pairs],
            "attention_mask": [[1] * len(ids) for ids, _ in pairs],
            "labels": [labels for _, labels in pairs],
        }

    return encode


def image_encoder(spec: TaskSpec, processor: Any) -> Encoder:
    """Images as RGB through the model's own processor; called when a batch is taken."""
    column = spec.settings.image

    def encode(batch: RowBatch) -> dict[str, object]:
        images = [image.convert("RGB") for image in batch[column]]
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": list(batch["labels"])}

    return encode


def longest(spec: TaskSpec, tokenizer: Any) -> int:
    """Tokens of an example: ``max_length``, or fewer where the tokenizer says so."""
    return int(min(spec.settings.max_length, tokenizer.model_max_length))


def _without(end: list[int], ids: list[int]) -> list[int]:
    """Token numbers without the end of text, which some tokenizers add themselves."""
    return ids[:-1] if end and ids[-1:] == end else ids


def texts(spec: TaskSpec, column: str, values: Sequence[object]) -> list[str]:
    """The values, all of them text.

    Raises:
        RecipeError: one is null.
    """
    checked = []
    for value in values:
        if not isinstance(value, str):
            refuse(spec, "data", f"column {column!r} has a row with {value!r} in place of a text")
        checked.append(value)
    return checked


def inputs(spec: TaskSpec, part: RowTable) -> tuple[str, ...]:
    """Columns that go into the model: a text, a pair, prompt and completion, or an image.

    Args:
        spec: the task.
        part: a ``datasets.Dataset``.
    """
    s = spec.settings
    if s.task_type == "image-classification":
        return (s.image,)
    if s.task_type == "causal-lm":
        return (s.prompt, s.completion) if s.prompt and s.completion else (s.text,)
    if s.text2 is not None:
        return (s.text, s.text2)
    pair = TEXT2 in part.column_names and s.text != TEXT2
    return (s.text, TEXT2) if pair else (s.text,)


def targets(spec: TaskSpec, rows: TaskRows) -> tuple[tuple[str, ...], dict[str, list[object]]]:
    """Names of the classes, and split -> the label of each row: int, or float for regression.

    Empty for ``causal-lm``.

    Raises:
        RecipeError: a label is missing, or is no label.
    """
    kind, column = spec.settings.task_type, spec.settings.label
    if kind == "causal-lm":
        return (), {}
    if kind == "regression":
        return (), {s: [*_floats(spec, p[column], s)] for s, p in parts(rows)}
    names = label_names(spec, rows)
    return names, {s: [*numbers(spec, names, p[column], s)] for s, p in parts(rows)}


def _floats(spec: TaskSpec, values: Iterable[object], split: str) -> list[float]:
    """The labels of a regression."""
    floats = []
    for row, value in enumerate(values, 1):
        # True and False are numbers in Python, but no labels of a regression.
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not math.isfinite(value)
        ):
            refuse(spec, "label", f"{split} row {row} has {value!r:.40}, no number")
        floats.append(float(value))
    return floats


def label_names(spec: TaskSpec, rows: TaskRows) -> tuple[str, ...]:
    """Names of the classes in order: the recipe's, the data's own, ``labels.txt``, or the sorted
    values of the train split.

    Raises:
        RecipeError: there is no column of labels, or fewer than two classes.
    """
    names = spec.labels or _own_names(spec, rows) or rows.label_file or _met(spec, rows)
    if len(set(names)) != len(names):
        refuse(spec, "labels", "a name is there twice")
    if not 2 <= len(names) <= MOST_LABELS:
        shown = ", ".join(names[:3]) or "none"
        refuse(spec, "label", f"{len(names)} classes ({shown}); at least 2 are needed")
    return names


def _own_names(spec: TaskSpec, rows: TaskRows) -> tuple[str, ...] | None:
    """Names that a column of the type ``ClassLabel`` brings along."""
    part = rows.train if rows.train is not None else rows.eval
    feature = part.features.get(spec.settings.label)
    names = getattr(feature, "names", None)
    return tuple(names) if names else None


def _met(spec: TaskSpec, rows: TaskRows) -> tuple[str, ...]:
    """Values of the train split, sorted: numbers by size, else by alphabet."""
    if rows.train is None:
        refuse(spec, "labels", "needed: nothing is learned that would tell the classes")
    met = {_name(value) for value in rows.train[spec.settings.label]} - {None}
    names = [name for name in met if name is not None]
    if len(names) > 1 and _numeric(names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def numbers(
    spec: TaskSpec, names: Sequence[str], values: Iterable[object], split: str
) -> list[int]:
    """Number of each row's class, from 0.

    A text is a class's name; a number is its place, unless the names are numbers themselves.

    Raises:
        RecipeError: a row has no label, or one that is no class.
    """
    known = {name: i for i, name in enumerate(names)}
    # Each value is looked up once: a split may have millions of rows.
    by_value: dict[tuple[type, str], int] = {}
    result = []
    for row, value in enumerate(values):
        number = by_value.get(_key(value))
        if number is None:
            number = by_value[_key(value)] = _number(spec, known, value, f"{split} row {row + 1}")
        result.append(number)
    return result


def _key(value: object) -> tuple[type, str]:
    """What tells values apart: True is not 1, and what cannot be hashed has a text."""
    return type(value), str(value)


def _number(spec: TaskSpec, known: Mapping[str, int], value: object, where: str) -> int:
    name, place = _name(value), _place(value)
    if name is None:
        refuse(spec, "label", f"{where} has no label")
    at = known.get(name, None if _numeric(known) else place)
    if at is None or not 0 <= at < len(known):
        few = ", ".join(list(known)[:5]) + (", ..." if len(known) > 5 else "")
        tail = "; -1 often marks a split without labels: choose another" if place == -1 else ""
        refuse(spec, "label", f"{where} has {_brief(value)}, no class of {few}{tail}")
    return at


def _name(value: object) -> str | None:
    """A label as a text; None: there is none. Columns of numbers with gaps come as floats: 1.0 is
    ``1``."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _place(value: object) -> int | None:
    """A whole number, whatever type it came in; None: it is none."""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return None


def _numeric(names: Iterable[str]) -> bool:
    return all(n.removeprefix("-").isdecimal() for n in names)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def check_columns(spec: TaskSpec, rows: TaskRows) -> None:
    """Refuse rows without the columns that the task reads.

    Raises:
        RecipeError: a column is missing, or has another type.
    """
    for split, part in parts(rows):
        names = inputs(spec, part)
        labelled = () if spec.settings.task_type == "causal-lm" else (spec.settings.label,)
        for name in (*names, *labelled):
            _present(spec, part, name, split)
        for name in names:
            _type(spec, part, name, split)


def _present(spec: TaskSpec, part: RowTable, name: str, split: str) -> None:
    if name not in part.column_names:
        columns = ", ".join(part.column_names)
        guess = hint(name, tuple(part.column_names))
        refuse(spec, "data", f"the {split} split has no column {name!r}, but {columns}{guess}")


def _type(spec: TaskSpec, part: RowTable, name: str, split: str) -> None:
    feature = part.features[name]
    image = spec.settings.task_type == "image-classification"
    kind = type(feature).__name__ if image else str(getattr(feature, "dtype", feature))
    if kind not in (("Image",) if image else ("string", "large_string")):
        wanted = "images" if image else "texts"
        refuse(spec, "data", f"column {name!r} of the {split} split holds no {wanted} ({kind})")


def parts(rows: TaskRows) -> list[tuple[str, RowTable]]:
    """The splits that are there, by what they are for."""
    both = (("train", rows.train), ("eval", rows.eval))
    return [(name, part) for name, part in both if part is not None]
