"""Bodies of requests and answers as OpenAI's API has them, and texts as token ids.

What this server does not offer is refused, not ignored.
"""

from __future__ import annotations

import base64
import json
import struct
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.protocols import Tokenizer
from sharespace.serve.base_model import ServedModel
from sharespace.serve.identity import AnswerSource
from sharespace.serve.requests import Piece, Sampling

DONE = b"data: [DONE]\n\n"
"""Ends every stream; clients of OpenAI's API wait for it."""

Json: TypeAlias = dict[str, object]

Prompt = str | list[str] | list[int] | list[list[int]]

_Name = Annotated[str, Field(min_length=1, max_length=512)]

_MAX_TEXTS = 128
"""Most texts of one HTTP request; each takes a place in the engine's queue."""


_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    # Of other servers' APIs; clients that are made for these send them, too.
    "top_k": (0, -1),
    "min_p": (0,),
    "min_tokens": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
"""Settings that this server does not offer -> values that ask for nothing: "off", or what happens
anyway. Clients send them although nobody has set them."""

_UNUSED = ("user", "safety_identifier", "prompt_cache_key")
"""Texts about who asks; no answer depends on them."""


def _is_neutral(key: str, value: object) -> bool:
    """Whether a field asks for nothing: null, by which clients say "the default", or a default."""
    # True == 1 and 0 == False, but a client that says logprobs=0 asks for something.
    flag = isinstance(value, bool)
    neutral = _NEUTRAL.get(key, ())
    return value is None or any(value == v and flag == isinstance(v, bool) for v in neutral)


class RequestBody(BaseModel):
    """What all bodies have. An unknown key is an error: a setting must not do nothing silently."""

    model_config = ConfigDict(extra="forbid")

    model: _Name

    @model_validator(mode="before")
    @classmethod
    def _without_defaults(cls, body: object) -> object:
        """Leave out what asks for nothing; refuse by name what is not offered."""
        if not isinstance(body, dict):
            return body
        rest = {key: value for key, value in body.items() if not _is_neutral(key, value)}
        for key in _UNUSED:
            if isinstance(rest.get(key), str):
                del rest[key]
        for key in rest:
            if key in _NEUTRAL and key not in cls.model_fields:
                raise ValueError(f"{key} is not offered by this server; leave it out")
        return rest


class StreamOptions(BaseModel):
    """What a stream has besides text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


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
    stream_options: StreamOptions | None = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

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
            seed=None if self.seed is None else _following_seed(self.seed, choice),
        )


def _following_seed(seed: int, choice: int) -> int:
    """The seed of a choice; after the largest of 64 bits comes the smallest."""
    following = seed + choice
    return following - 2**64 if seed < 2**63 <= following else following


class CompletionBody(SamplingBody):
    """``POST /v1/completions``."""

    prompt: Prompt


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
    """One message of a conversation.

    Clients hand an answer back as they got it, with all the fields that were null or empty. What is
    not (calls of tools, sound) would be lost without a word, and is refused.
    """

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, message: object) -> object:
        if not isinstance(message, dict):
            return message
        return {
            key: value
            for key, value in message.items()
            if value is not None and (value != [] or key in cls.model_fields)
        }

    @property
    def text(self) -> str:
        """The whole text of the message."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class TextPart(BaseModel):
    """One part of a message; images and sound are refused."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class EmbeddingBody(RequestBody):
    """``POST /v1/embeddings``."""

    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"
    """OpenAI's Python client asks for base64 unless it is told otherwise."""


class ClassifyBody(RequestBody):
    """``POST /v1/classify``; OpenAI has none, so it is as vLLM has it."""

    input: Prompt


class AdapterBody(BaseModel):
    """``POST /v1/tasks``: an adapter on the server's disk becomes a task."""

    model_config = ConfigDict(extra="forbid")

    name: _Name
    adapter: _Name


def token_lists(served: ServedModel, tokenizer: Tokenizer, prompt: Prompt) -> list[tuple[int, ...]]:
    """One list of token ids for each text; token ids pass through, to be checked by the engine.

    A long text takes seconds: not to be called from an event loop.

    Args:
        served: says how long a text may be.
        tokenizer: of the task, or of the base model.
        prompt: texts or token ids.

    Raises:
        OptionError: nothing is given, too many texts, or one that is too long or is no text.
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
    return [
        _token_ids(served, tokenizer, text) if isinstance(text, str) else tuple(text)
        for text in texts
    ]


def _token_ids(
    served: ServedModel, tokenizer: Tokenizer, text: str, *, special: bool = True
) -> tuple[int, ...]:
    served.check_length(len(text))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can hold half of a surrogate pair; no tokenizer takes it.
        why = f"character {error.start} is half of a surrogate pair"
        raise OptionError("text", why, "Give whole characters") from error
    return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])


def chat_tokens(served: ServedModel, tokenizer: Tokenizer, body: ChatBody) -> tuple[int, ...]:
    """A conversation by the tokenizer's own template; not to be called from an event loop.

    Raises:
        OptionError: it has none, the template refuses the messages, or they are too long.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise OptionError(
            "chat",
            "neither the task nor the base model has a chat template",
            "Use /v1/completions",
        )
    served.check_length(sum(len(m.text) for m in body.messages))
    messages = [
        {"role": m.role, "content": m.text, **({} if m.name is None else {"name": m.name})}
        for m in body.messages
    ]
    require("jinja2", "serve")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:
        # Templates raise TemplateError on purpose, for example where roles do not alternate, and
        # any other error where they meet what they are not made for.
        raise OptionError("messages", f"the chat template says: {error}", "Change them") from error
    # The template has written the special tokens; added again, the text would begin twice.
    return _token_ids(served, tokenizer, text, special=False)


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
        head = self._head(name, answers[0].source)
        return {**head, "choices": choices, "usage": usage(read, written)}

    def _choice(self, index: int, answer: Piece) -> Json:
        end = {"index": index, "finish_reason": answer.finish, "logprobs": None}
        if self.kind == "text":
            return {"text": answer.text, **end}
        return {"message": {"role": "assistant", "content": answer.text}, **end}

    def opening(self, index: int, source: AnswerSource | None) -> Json | None:
        """A chat's first chunk, which says who speaks; a text has none."""
        if self.kind == "text":
            return None
        return self._chat_chunk(index, {"role": "assistant", "content": ""}, None, source)

    def chunk(self, index: int, piece: Piece) -> Json:
        """A chunk with a piece of one choice."""
        if self.kind == "text":
            choice = self._choice(index, piece)
            return {**self._head("text_completion", piece.source), "choices": [choice]}
        delta: Json = {"content": piece.text} if piece.text else {}
        return self._chat_chunk(index, delta, piece.finish, piece.source)

    def last(self, read: int, written: int, source: AnswerSource | None) -> Json:
        """The chunk with the numbers of tokens; it has no choices."""
        name = "text_completion" if self.kind == "text" else "chat.completion.chunk"
        return {**self._head(name, source), "choices": [], "usage": usage(read, written)}

    def _chat_chunk(
        self, index: int, delta: Json, finish: str | None, source: AnswerSource | None
    ) -> Json:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {**self._head("chat.completion.chunk", source), "choices": [choice]}

    def _head(self, name: str, source: AnswerSource | None) -> Json:
        head: Json = {"id": self.id, "object": name, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": None if source is None else source.fingerprint}


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
