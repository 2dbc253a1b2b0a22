"""Answers as OpenAI's API has them."""

from __future__ import annotations

import base64
import json
import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sharespace.serve.requests import Piece


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


DONE = b"data: [DONE]\n\n"


def embedding(values: Sequence[float], form: str) -> str | list[float]:
    """A vector as a list, or as base64 of float32."""
    if form == "float":
        return list(values)
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def error(message: str, kind: str, status: int) -> dict[str, Any]:
    """An error's body."""
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
