"""From what a client sends to token ids, by the base model's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.serve.requests import Sampling
from sharespace.serve.schema import ChatBody, Prompt, Sampled

_ROWS = 128
"""Of one HTTP request."""


def token_lists(tokenizer: Any, prompt: Prompt) -> list[tuple[int, ...]]:
    """One list a text; token ids pass through.

    Raises:
        OptionError: nothing is given, too many texts, or a token that the tokenizer has not.
    """
    if isinstance(prompt, str):
        texts: Sequence[str | list[int]] = [prompt]
    elif prompt and isinstance(prompt[0], int):
        texts = [prompt]
    else:
        texts = prompt  # type: ignore[assignment]
    if not texts or len(texts) > _ROWS:
        raise OptionError(f"{len(texts)} texts", f"1 to {_ROWS} can be asked at once", "Split them")
    return [_tokens(tokenizer, text) for text in texts]


def _tokens(tokenizer: Any, text: str | list[int]) -> tuple[int, ...]:
    if isinstance(text, str):
        return tuple(tokenizer(text)["input_ids"])
    known = len(tokenizer)
    wrong = [token for token in text if not 0 <= token < known]
    if wrong:
        raise OptionError(f"token {wrong[0]}", f"the vocabulary has {known}", "Give text instead")
    return tuple(text)


def chat_tokens(tokenizer: Any, body: ChatBody) -> tuple[int, ...]:
    """A conversation by the tokenizer's own template.

    Raises:
        OptionError: it has none, or the template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise OptionError(
            "chat", "the base model's tokenizer has no chat template", "Use /v1/completions"
        )
    messages = [{"role": m.role, "content": m.text} for m in body.messages]
    jinja = require("jinja2", "serve")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except jinja.TemplateError as error:
        raise OptionError("messages", f"the chat template says: {error}", "Change them") from error
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def sampling(body: Sampled, default: int, choice: int) -> Sampling:
    """The settings of one choice; several choices with one seed get seeds of their own.

    Raises:
        OptionError: a number is out of range.
    """
    asked = body.max_tokens
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        asked = body.max_completion_tokens
    return Sampling(
        max_tokens=default if asked is None else asked,
        temperature=body.temperature,
        top_p=body.top_p,
        stop=body.stops,
        seed=None if body.seed is None else body.seed + choice,
    )
