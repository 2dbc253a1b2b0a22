"""The score of a task on its evaluation data, by a model that holds the task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sharespace.errors import OptionError
from sharespace.stream.metrics import IGNORED, metric
from sharespace.stream.recipe import TaskData, TaskSpec


def evaluation_spec(spec: TaskSpec, labels: tuple[str, ...]) -> TaskSpec:
    """The task as its evaluation data alone gives it: the training data may be gone.

    Args:
        labels: names of the classes when it was learned.
    """
    known = labels if labels and spec.settings.task_type != "regression" else None
    if spec.settings.eval_fraction is not None:
        # Its evaluation data are a part of the training data.
        return replace(spec, labels=known)
    if spec.eval_data is None:
        return replace(spec, eval_only=True, labels=known)
    settings = replace(spec.settings, eval_split=None)
    return replace(
        spec, data=spec.eval_data, eval_data=None, eval_only=True, labels=known, settings=settings
    )


@torch.no_grad()
def score(model: Any, spec: TaskSpec, data: TaskData, processor: Any) -> float:
    """The task's metric on its evaluation data; higher is better.

    Args:
        model: runs the task, heads included.
        spec: the task.
        data: of the task.
        processor: the tokenizer, for metrics of texts.

    Raises:
        OptionError: the model gives NaN, or the metric is not defined for the data.
    """
    model.eval()
    measured = metric(spec.settings.score)
    if measured.takes == "texts":
        pairs = list(_texts(model, spec, data, processor))
        return measured.score([p for p, _ in pairs], [r for _, r in pairs])
    if spec.settings.task_type == "causal-lm":
        loss = _token_loss(_outputs(model, spec, data))
        return -math.exp(loss) if measured.name == "perplexity" else -loss
    outputs = list(_outputs(model, spec, data))
    logits = torch.cat([logits for logits, _ in outputs])
    labels = torch.cat([labels for _, labels in outputs])
    if not bool(torch.isfinite(logits).all()):
        raise OptionError(f"task {spec.name!r}", "its model gives NaN", "Lower its learning_rate")
    if measured.takes == "values":
        return measured.score(logits.reshape(-1).numpy(), labels.reshape(-1).numpy())
    if measured.takes == "labels":
        return measured.score(logits.argmax(-1).numpy(), labels.numpy())
    return measured.score(logits, labels)


@torch.no_grad()
def classes(model: Any, spec: TaskSpec, data: TaskData, rows: Sequence[int]) -> list[int]:
    """Numbers of the classes that a model gives to rows of a task's evaluation data.

    Args:
        model: of this task or another; heads included.
        spec: the task whose data it is.
        data: its evaluation data.
        rows: numbers of the rows.
    """
    model.eval()
    selected = replace(data, eval=data.eval.select(rows))
    logits = torch.cat([logits for logits, _ in _outputs(model, spec, selected)])
    numbers: list[int] = logits.argmax(-1).tolist()
    return numbers


def _outputs(model: Any, spec: TaskSpec, data: TaskData) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels, a batch at a time, on the CPU.

    The labels stay away from the model: it would make a loss of them, and they may be another's.
    """
    device = next(model.parameters()).device
    size = spec.training.per_device_eval_batch_size
    for batch in DataLoader(data.eval, batch_size=size, collate_fn=data.collator):
        with _autocast(spec, device):
            inputs = {k: v.to(device) for k, v in batch.items() if k != "labels"}
            logits = model(**inputs).logits
        yield logits.float().cpu(), batch["labels"]


def _autocast(spec: TaskSpec, device: torch.device) -> AbstractContextManager[Any]:
    training = spec.training
    if not (training.bf16 or training.fp16):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if training.bf16 else torch.float16)


def _token_loss(outputs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Cross entropy a token, in nats, one batch in memory; logits at a token predict the next."""
    loss, total = metric("loss"), 0
    summed = 0.0
    # Batches have different numbers of tokens that count: a mean of their means would be wrong.
    for logits, labels in outputs:
        count = int((labels[:, 1:] != IGNORED).sum())
        if count:
            summed += count * loss(logits[:, :-1], labels[:, 1:])
            total += count
    if not total or not math.isfinite(summed):
        why = "no token of its evaluation data counts" if not total else "its model gives NaN"
        raise OptionError("causal-lm", why, "Check its data, max_length and learning_rate")
    return summed / total


def _texts(model: Any, spec: TaskSpec, data: TaskData, tokenizer: Any) -> Iterator[tuple[str, str]]:
    """What the model writes after each prompt (greedily), and what it should."""
    device = next(model.parameters()).device
    size = spec.training.per_device_eval_batch_size
    for at in range(0, len(data.eval), size):
        rows = [data.eval[i] for i in range(at, min(at + size, len(data.eval)))]
        prompts = [_prompt(row) for row in rows]
        most = max(len(row["input_ids"]) - len(p) for row, p in zip(rows, prompts, strict=True))
        ids, mask = _padded_left(prompts, tokenizer.pad_token_id)
        with _autocast(spec, device):
            written = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max(most, 1),
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        answers = tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
        references = data.eval_rows[at : at + len(rows)][spec.settings.completion]
        yield from zip(answers, references, strict=True)


def _prompt(row: Mapping[str, list[int]]) -> list[int]:
    """The tokens that are not learned: those before the completion."""
    return [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]


def _padded_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token numbers and mask, both int64 [rows, longest], padded at the left.

    A decoder writes on from the right end, where padding would come between prompt and answer.
    """
    longest = max(len(row) for row in rows)
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
