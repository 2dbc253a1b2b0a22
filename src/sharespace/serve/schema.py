"""Bodies of requests, as OpenAI's API has them; what is not offered is refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_Name = Annotated[str, Field(min_length=1, max_length=512)]
_Stop = str | list[str] | None


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


Prompt = str | list[str] | list[int] | list[list[int]]


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
