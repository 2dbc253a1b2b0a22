"""Answers as OpenAI's API has them.

Bodies of requests, as OpenAI's API has them; what is not offered is refused, not ignored.

From what a client sends to token ids, by the base model's tokenizer.
"""

from __future__ import annotations

import base64
import json
import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.serve.requests import Piece, Sampling

DONE = b"data: [DONE]\n\n"

_Name = Annotated[str, Field(min_length=1, max_length=512)]

_Stop = str | list[str] | None

Prompt = str | list[str] | list[int] | list[list[int]]

_ROWS = 128
"""Of one HTTP request."""


@dataclass(frozen=True)
class Form:
    """Of one completion, whole or in chunks."""

    kind: Literal["text", "chat"]
    model: str
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Piece], read: int) -> dict[str, Any]:
        """All choices at once."""
        object_ = "text_completion" if self.kind == "text" else "chat.completion"
        choices = [self._choice(i, answer) for i, answer in enumerate(answers)]
        used = usage(read, sum(answer.tokens for answer in answers))
        return {**self._head(object_), "choices": choices, "usage": used}

    def _choice(self, index: int, answer: Piece) -> dict[str, Any]:
        end = {"index": index, "finish_reason": answer.finish, "logprobs": None}
        if self.kind == "text":
            return {"text": answer.text, **end}
        return {"message": {"role": "assistant", "content": answer.text}, **end}

    def opening(self, index: int) -> dict[str, Any] | None:
        """A chat's first chunk, which says who speaks."""
        if self.kind == "text":
            return None
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece of one choice."""
        if self.kind == "text":
            choice = self._choice(index, piece)
            return {**self._head("text_completion"), "choices": [choice]}
        return self._chunk(index, {"content": piece.text} if piece.text else {}, piece.finish)

    def last(self, read: int, written: int) -> dict[str, Any]:
        """The chunk with the numbers of tokens."""
        object_ = "text_completion" if self.kind == "text" else "chat.completion.chunk"
        return {**self._head(object_), "choices": [], "usage": usage(read, written)}

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, object_: str) -> dict[str, Any]:
        return {"id": self.id, "object": object_, "created": self.created, "model": self.model}


def usage(read: int, written: int) -> dict[str, int]:
    """Numbers of tokens."""
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(value)}\n\n".encode()


def embedding(values: Sequence[float], form: str) -> str | list[float]:
    """A vector as a list, or as base64 of float32."""
    if form == "float":
        return list(values)
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def error(message: str, kind: str, status: int) -> dict[str, Any]:
    """An error's body."""
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


class Body(BaseModel):
    """Unknown keys are an error: a setting that does nothing would be a lie."""

    model_config = ConfigDict(extra="forbid")

    model: _Name
    user: str | None = None
    """Taken and not used, as clients send it."""


class Sampled(Body):
    """How the answer is chosen."""

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    n: Annotated[int, Field(ge=1, le=16)] = 1
    stop: _Stop = None
    seed: int | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    frequency_penalty: Literal[0] = 0
    presence_penalty: Literal[0] = 0
    logprobs: Literal[False] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """As many texts as there are."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))


class CompletionBody(Sampled):
    """``POST /v1/completions``."""

    prompt: Prompt
    echo: Literal[False] = False
    best_of: Literal[1] | None = None


class Part(BaseModel):
    """A part of a message; only text."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    @property
    def text(self) -> str:
        """All parts together."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatBody(Sampled):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = None


class EmbeddingBody(Body):
    """``POST /v1/embeddings``."""

    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None


class ClassifyBody(Body):
    """``POST /v1/classify`` (as vLLM has it)."""

    input: Prompt


class AdapterBody(BaseModel):
    """``POST /v1/tasks``: an adapter on the server's disk becomes a task."""

    model_config = ConfigDict(extra="forbid")

    name: _Name
    adapter: _Name


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
