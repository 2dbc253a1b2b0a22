"""What is asked of the engine and what it answers, free of HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from sharespace.errors import OptionError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises OptionError where a number is out of range."""

    max_tokens: int = 16
    temperature: float = 1.0
    """0: the most probable token."""
    top_p: float = 1.0
    """Tokens are taken from the smallest set that has this probability."""
    stop: tuple[str, ...] = ()
    """Text that ends the answer; it is left out of it."""
    seed: int | None = None
    """The same seed gives the same answer, whatever else is in the batch; None: any."""

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _require(0 <= self.temperature <= 2, "temperature", self.temperature, "between 0 and 2")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(all(self.stop), "stop", list(self.stop), "without an empty text")
        _require(len(self.stop) <= 4, "stop", list(self.stop), "at most 4 texts")


@dataclass(frozen=True)
class Generate:
    """A text to continue."""

    task: str | None
    """None: the base model."""
    tokens: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True)
class Classify:
    """A text to classify by the task's head."""

    task: str | None
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Embed:
    """A text whose mean last hidden state is wanted."""

    task: str | None
    tokens: tuple[int, ...]


Request = Generate | Classify | Embed


@dataclass(frozen=True)
class Piece:
    """Some more text of an answer."""

    text: str
    finish: str | None = None
    """``"stop"`` or ``"length"`` with the last piece."""
    tokens: int = 0
    """Generated so far, all pieces together."""


@dataclass(frozen=True)
class Scores:
    """Logits of a classification."""

    logits: tuple[float, ...]
    """One a label of the task's own head."""


@dataclass(frozen=True)
class Vector:
    """An embedding."""

    values: tuple[float, ...]
    """Mean of the last hidden states over the text's tokens, of length 1."""


def _require(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise OptionError(f"{name}={value!r}", f"it must be {wanted}", "Change it")
