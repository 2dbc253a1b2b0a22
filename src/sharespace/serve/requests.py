"""What the engine is asked and what it answers, free of HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from sharespace.errors import OptionError
from sharespace.options import check_options, option
from sharespace.serve.identity import AnswerSource


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises OptionError where a number is out of range."""

    max_tokens: int = option(16, least=1)
    """Most tokens of the answer."""
    temperature: float = option(1.0, least=0, most=2)
    """0: the most probable token."""
    top_p: float = option(1.0, above=0, most=1)
    """Tokens are taken from the smallest set that has this probability."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, at most four; they are left out of it."""
    seed: int | None = None
    """The same seed gives the same answer, whatever else is in the batch; None: any answer."""

    def __post_init__(self) -> None:
        check_options(self)
        # Each new token is looked for all of them, so their number is the work of one row; four is
        # also the limit of OpenAI's API.
        if len(self.stop) > 4:
            raise OptionError(f"stop={list(self.stop)!r}", "at most 4 texts can be", "Give fewer")
        # An empty text stands at the beginning of every answer and would end it there.
        if not all(self.stop):
            raise OptionError(f"stop={list(self.stop)!r}", "a text is empty", "Leave it out")
        # torch.Generator takes 64 bits, and would raise only while the batch runs.
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise OptionError(f"seed={self.seed}", "it must fit into 64 bits", "Give a smaller one")


@dataclass(frozen=True)
class Generate:
    """Asks for the continuation of a text."""

    task: str | None
    """None: the base model."""
    tokens: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True)
class Classify:
    """Asks for the class of a text by the task's head."""

    task: str | None
    """None: the base model."""
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Embed:
    """Asks for the mean last hidden state of a text."""

    task: str | None
    """None: the base model."""
    tokens: tuple[int, ...]


EngineRequest: TypeAlias = Generate | Classify | Embed


@dataclass(frozen=True)
class Piece:
    """Answers ``Generate``: some more text."""

    text: str
    finish: str | None = None
    """``"stop"`` or ``"length"`` with the last piece, None before it."""
    tokens: int = 0
    """Tokens generated so far, in all pieces up to this one."""
    source: AnswerSource | None = None
    """What it was computed with; None: the base model."""


@dataclass(frozen=True)
class ClassLogits:
    """Answers ``Classify``."""

    logits: tuple[float, ...]
    """One logit for each label of the task's own head."""
    source: AnswerSource | None = None
    """What it was computed with; None: the base model."""


@dataclass(frozen=True)
class Vector:
    """Answers ``Embed``."""

    values: tuple[float, ...]
    """Mean of the last hidden states over the text's tokens, of length 1."""
    source: AnswerSource | None = None
    """What it was computed with; None: the base model."""


EngineAnswer: TypeAlias = Piece | ClassLogits | Vector
