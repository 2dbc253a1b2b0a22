"""Texts to token numbers, images to pixels: one function for each kind of task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sharespace.recipe.columns import texts
from sharespace.recipe.schema import TaskSpec

Batch = Mapping[str, Sequence[Any]]
Encoder = Callable[[Batch], dict[str, Any]]

IGNORED = -100
"""The label that torch's cross entropy leaves out."""


def text_encoder(spec: TaskSpec, tokenizer: Any, columns: Sequence[str]) -> Encoder:
    """A text or a pair; the longer of a pair is cut first. Labels come from ``labels``."""
    length = longest(spec, tokenizer)

    def encode(batch: Batch) -> dict[str, Any]:
        found = [texts(spec, column, batch[column]) for column in columns]
        encoded = dict(tokenizer(*found, truncation=True, max_length=length))
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

    def encode(batch: Batch) -> dict[str, Any]:
        found = [texts(spec, column, batch[column]) for column in columns]
        prompts = found[0] if len(found) > 1 else [""] * len(found[0])
        pairs = [one(p, c) for p, c in zip(prompts, found[-1], strict=True)]
        return {
            "input_ids": [ids for ids, _ in pairs],
            "attention_mask": [[1] * len(ids) for ids, _ in pairs],
            "labels": [labels for _, labels in pairs],
        }

    return encode


def image_encoder(spec: TaskSpec, processor: Any) -> Encoder:
    """Images as RGB through the model's own processor; called when a batch is taken."""
    column = spec.settings.image

    def encode(batch: Batch) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch[column]]
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": list(batch["labels"])}

    return encode


def longest(spec: TaskSpec, tokenizer: Any) -> int:
    """Tokens of an example: ``max_length``, or fewer where the tokenizer says so."""
    return int(min(spec.settings.max_length, tokenizer.model_max_length))


def _without(end: list[int], ids: list[int]) -> list[int]:
    """Some tokenizers end every text themselves."""
    return ids[:-1] if end and ids[-1:] == end else ids
