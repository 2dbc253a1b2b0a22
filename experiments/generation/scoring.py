"""Scores of many adapters at once: exact match or Rouge-L of greedy answers, and the loss.

A greedy answer equals the reference exactly where every token of the reference (its end included)
is the model's first choice after the ones before it. So exact match needs one forward pass and no
generation; tokens are generated for Rouge-L only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from experiments.generation.base import Base, Tokens, answer_logits, padded, tokenise
from experiments.generation.many import Stack, adapted
from experiments.generation.tasks import GenerationTask
from sharespace.stream.metrics import metric

_ROWS = 384
"""In one forward pass."""
LONGEST = 28
"""Tokens of an answer, at most."""


@dataclass(frozen=True)
class Score:
    """One task's."""

    percent: float
    """Exact match for classes, Rouge-L for rewriting."""
    loss: float
    """Mean negative log-likelihood of a token of the answers, those before it given, in nats."""


@dataclass(frozen=True, eq=False)
class Tests:
    """A task's test examples, tokenised."""

    task: GenerationTask
    rows: tuple[Tokens, ...]

    @property
    def name(self) -> str:
        return self.task.name


def make_tests(base: Base, tasks: Sequence[GenerationTask], length: int) -> list[Tests]:
    """Of every task."""
    return [Tests(t, tuple(tokenise(base.tokenizer, t.test, length))) for t in tasks]


@torch.no_grad()
def score(base: Base, tests: Sequence[Tests], stack: Stack | None) -> dict[str, Score]:
    """Task -> score.

    Args:
        tests: of the tasks that are scored.
        stack: has an adapter of each task's name; None: the base model alone.
    """
    scores: dict[str, Score] = {}
    for some in _chunks(tests):
        mine = stack.select([t.name for t in some]) if stack else None
        exact, loss = _forced(base.model, some, mine)
        for number, test in enumerate(some):
            percent = 100 * float(exact[number].float().mean())
            scores[test.name] = Score(percent, float(loss[number]))
        if some[0].task.kind == "rewriting":
            scores |= _rouge(base, some, mine, scores)
    return {test.name: scores[test.name] for test in tests}


def _chunks(tests: Sequence[Tests]) -> list[list[Tests]]:
    """Tasks of one kind with as many examples each."""
    chunks: list[list[Tests]] = []
    for test in sorted(tests, key=lambda t: (t.task.kind, len(t.rows))):
        like = chunks and _shape(chunks[-1][0]) == _shape(test)
        if like and (len(chunks[-1]) + 1) * len(test.rows) <= _ROWS:
            chunks[-1].append(test)
        else:
            chunks.append([test])
    return chunks


def _shape(test: Tests) -> tuple[str, int]:
    return test.task.kind, len(test.rows)


def _forced(model: Any, tests: Sequence[Tests], stack: Stack | None) -> tuple[Tensor, Tensor]:
    """bool [tasks, examples]: all tokens right; float32 [tasks]: mean loss of a token."""
    ids, labels = padded([row for test in tests for row in test.rows])
    with adapted(model, stack):
        logits, wanted = answer_logits(model, ids, labels)
    counted = labels[:, 1:] >= 0
    owner = torch.arange(len(ids))[:, None].expand_as(counted)[counted]
    wrong = torch.zeros(len(ids)).index_add(0, owner, (logits.argmax(1) != wanted).float())
    lost = functional.cross_entropy(logits.float(), wanted, reduction="none")
    sums = torch.zeros(len(ids)).index_add(0, owner, lost).reshape(len(tests), -1).sum(1)
    tokens = counted.sum(1).reshape(len(tests), -1).sum(1)
    return (wrong == 0).reshape(len(tests), -1), sums / tokens


def _rouge(
    base: Base, tests: Sequence[Tests], stack: Stack | None, known: Mapping[str, Score]
) -> dict[str, Score]:
    answers = generate(base, [row for test in tests for row in test.rows], stack)
    rouge, scores = metric("rouge_l"), {}
    for test in tests:
        mine, answers = answers[: len(test.rows)], answers[len(test.rows) :]
        percent = rouge(mine, [example.answer for example in test.task.test])
        scores[test.name] = Score(percent, known[test.name].loss)
    return scores


@torch.no_grad()
def generate(base: Base, rows: Sequence[Tokens], stack: Stack | None) -> list[str]:
    """Greedy answers to the prompts.

    Args:
        rows: as many for each adapter of the stack, the first adapter's first.
        stack: None: the base model alone.
    """
    longest = max(row.prompt for row in rows)
    ids = torch.full((len(rows), longest), base.tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - row.prompt :] = torch.tensor(row.ids[: row.prompt])
        mask[i, longest - row.prompt :] = 1
    with adapted(base.model, stack):
        made = base.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=LONGEST, do_sample=False
        )
    texts: list[str] = base.tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
    return [text.strip() for text in texts]
