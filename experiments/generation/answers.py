"""Rouge-L of a language model's greedy answers, one adapter at a time, by PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from experiments.generation.hub import Question
from sharespace.extras import require
from sharespace.stream.metrics import metric
from sharespace.tuner import release


def score(
    model: Any, tokenizer: Any, questions: Sequence[Question], adapter: str | None, tokens: int
) -> float:
    """Percent: Rouge-L against the best of the references, mean over the examples.

    Args:
        model: the base model; it is given back as it was.
        adapter: folder or Hub id of a PEFT adapter; None: none.
        tokens: of an answer, at most.
    """
    if adapter is None:
        return rouge(answers(model, tokenizer, questions, tokens), questions)
    wrapped = require("peft", "train").PeftModel.from_pretrained(model, adapter)
    try:
        return rouge(answers(wrapped.eval(), tokenizer, questions, tokens), questions)
    finally:
        release(wrapped)


@torch.no_grad()
def answers(
    model: Any, tokenizer: Any, questions: Sequence[Question], tokens: int, batch: int = 16
) -> list[str]:
    """Greedy, the prompt as it is in the data set; long prompts lose their beginning."""
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    texts: list[str] = []
    for at in range(0, len(questions), batch):
        prompts = [question.input for question in questions[at : at + batch]]
        limit = model.config.max_position_embeddings - tokens
        given = tokenizer(
            prompts, return_tensors="pt", padding=True, truncation=True, max_length=min(limit, 2048)
        )
        given = {k: v.to(model.device) for k, v in given.items() if k != "token_type_ids"}
        made = model.generate(
            **given, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        new = made[:, given["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def rouge(texts: Sequence[str], questions: Sequence[Question]) -> float:
    """Percent."""
    rouge_l = metric("rouge_l")
    return fmean(
        max(rouge_l([text], [reference]) for reference in question.references)
        for text, question in zip(texts, questions, strict=True)
    )
