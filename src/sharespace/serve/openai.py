"""Bodies of requests and answers as OpenAI's API has them, and texts as token ids.

What this server does not offer is refused, not ignored.
"""

from __future__ import annotations

import base64
import json
import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.protocols import Tokenizer
from sharespace.serve.requests import Piece, Sampling

DONE = b"data: [DONE]\n\n"
"""Ends every stream; clients of OpenAI's API wait for it."""

Json: TypeAlias = dict[str, object]

Prompt = str | list[str] | list[int] | list[list[int]]

_Name = Annotated[str, Field(min_length=1, max_length=512)]

_MAX_TEXTS = 128
"""Most texts of one HTTP request; each takes a place in the engine's queue."""


class RequestBody(BaseModel):
    """What all bodies have. An unknown key is an error: a setting must not do nothing silently."""

    model_config = ConfigDict(extra="forbid")

    model: _Name
    user: str | None = None
    """Accepted because clients send it, and not used."""


class SamplingBody(RequestBody):
    """How the answer is chosen.

    Penalties and log probabilities are not offered; the values that turn them off are accepted,
    because some clients always send them.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    # Each choice is a row of its own in the model, so one request is at most 16 times 128 rows.
    n: Annotated[int, Field(ge=1, le=16)] = 1
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: Json | None = None
    frequency_penalty: Literal[0] = 0
    presence_penalty: Literal[0] = 0
    logprobs: Literal[False] | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))

    def wanted_tokens(self) -> int | None:
        """Most tokens of the answer; None: the request does not say."""
        return self.max_tokens

    def sampling(self, default_tokens: int, choice: int) -> Sampling:
        """The settings of one choice; several choices with one seed get seeds of their own.

        Args:
            default_tokens: most tokens of the answer where the request does not say.
            choice: number of the choice, from 0.

        Raises:
            OptionError: a number is out of range.
        """
        tokens = self.wanted_tokens()
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=default_tokens if tokens is None else tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=stop,
            seed=None if self.seed is None else self.seed + choice,
        )


class CompletionBody(SamplingBody):
    """``POST /v1/completions``."""

    prompt: Prompt
    echo: Literal[False] = False
    best_of: Literal[1] | None = None


class ChatBody(SamplingBody):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = None
    """OpenAI's newer name of ``max_tokens``, which goes first."""

    def wanted_tokens(self) -> int | None:
        """Most tokens of the answer; None: the request does not say."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer


class ChatMessage(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The whole text of the message."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class TextPart(BaseModel):
    """One part of a message; images and sound are refused."""

    type: Literal["text"]
    text: str


class EmbeddingBody(RequestBody):
    """``POST /v1/embeddings``."""

    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"
    """OpenAI's Python client asks for base64 unless it is told otherwise."""
    dimensions: None = None


class ClassifyBody(RequestBody):
    """``POST /v1/classify``; OpenAI has none, so it is as vLLM has it."""

    input: Prompt


class AdapterBody(BaseModel):
    """``POST /v1/tasks``: an adapter on the server's disk becomes a task."""

    model_config = ConfigDict(extra="forbid")

    name: _Name
    adapter: _Name


def token_lists(tokenizer: Tokenizer, prompt: Prompt) -> list[tuple[int, ...]]:
    """One list of token ids for each text; token ids pass through.

    Raises:
        OptionError: nothing is given, too many texts, or a token that the tokenizer does not have.
    """
    if isinstance(prompt, str):
        texts: Sequence[str | list[int]] = [prompt]
    elif prompt and isinstance(prompt[0], int):
        texts = [prompt]
    else:
        texts = prompt  # type: ignore[assignment]
    if not texts or len(texts) > _MAX_TEXTS:
        raise OptionError(
            f"{len(texts)} texts", f"1 to {_MAX_TEXTS} can be asked at once", "Split them"
        )
    return [_token_ids(tokenizer, text) for text in texts]


def _token_ids(tokenizer: Tokenizer, text: str | list[int]) -> tuple[int, ...]:
    if isinstance(text, str):
        return tuple(tokenizer(text)["input_ids"])
    # A token out of range would fail in the model's embedding: on a GPU that is an assertion in a
    # kernel, after which the process can do nothing more.
    size = len(tokenizer)
    wrong = [token for token in text if not 0 <= token < size]
    if wrong:
        raise OptionError(f"token {wrong[0]}", f"the vocabulary has {size}", "Give text instead")
    return tuple(text)


def chat_tokens(tokenizer: Tokenizer, body: ChatBody) -> tuple[int, ...]:
    """A conversation by the tokenizer's own template.

    Raises:
        OptionError: it has none, or the template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise OptionError(
            "chat",
            "neither the task nor the base model's tokenizer has a chat template",
            "Use /v1/completions",
        )
    messages = [{"role": m.role, "content": m.text} for m in body.messages]
    jinja = require("jinja2", "serve")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except jinja.TemplateError as error:
        # Templates raise on purpose, for example where roles do not alternate.
        raise OptionError("messages", f"the chat template says: {error}", "Change them") from error
    # The template has written the special tokens; added again, the text would begin twice.
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class CompletionForm:
    """The JSON of one completion, whole or in chunks."""

    kind: Literal["text", "chat"]
    model: str
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Piece], read: int) -> Json:
        """All choices at once.

        Args:
            answers: one for each choice.
            read: number of tokens of the prompts.
        """
        name = "text_completion" if self.kind == "text" else "chat.completion"
        choices = [self._choice(i, answer) for i, answer in enumerate(answers)]
        written = sum(answer.tokens for answer in answers)
        return {**self._head(name), "choices": choices, "usage": usage(read, written)}

    def _choice(self, index: int, answer: Piece) -> Json:
        end = {"index": index, "finish_reason": answer.finish, "logprobs": None}
        if self.kind == "text":
            return {"text": answer.text, **end}
        return {"message": {"role": "assistant", "content": answer.text}, **end}

    def opening(self, index: int) -> Json | None:
        """A chat's first chunk, which says who speaks; a text has none."""
        if self.kind == "text":
            return None
        return self._chat_chunk(index, {"role": "assistant", "content": ""}, None)

    def chunk(self, index: int, piece: Piece) -> Json:
        """A chunk with a piece of one choice."""
        if self.kind == "text":
            choice = self._choice(index, piece)
            return {**self._head("text_completion"), "choices": [choice]}
        delta: Json = {"content": piece.text} if piece.text else {}
        return self._chat_chunk(index, delta, piece.finish)

    def last(self, read: int, written: int) -> Json:
        """The chunk with the numbers of tokens; it has no choices."""
        name = "text_completion" if self.kind == "text" else "chat.completion.chunk"
        return {**self._head(name), "choices": [], "usage": usage(read, written)}

    def _chat_chunk(self, index: int, delta: Json, finish: str | None) -> Json:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, name: str) -> Json:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


def usage(read: int, written: int) -> dict[str, int]:
    """Numbers of tokens of a prompt and its answer."""
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def row_list(rows: Sequence[Json], model: str, read: int) -> Json:
    """The answer of an endpoint that gives one row for each text.

    Args:
        rows: in the order of the texts.
        model: as the request names it.
        read: number of tokens of the texts.
    """
    used = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "data": rows, "model": model, "usage": used}


def encoded_vector(values: Sequence[float], form: Literal["float", "base64"]) -> str | list[float]:
    """A vector as a list, or as base64 of float32 in little-endian order."""
    if form == "float":
        return list(values)
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def error_body(message: str, kind: str, status: int) -> Json:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def server_sent_event(value: Json) -> bytes:
    """One event of a stream; JSON has no line breaks, which would end it."""
    return f"data: {json.dumps(value)}\n\n".encode()
