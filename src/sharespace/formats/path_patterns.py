"""Regular expressions for paths of modules, matched in bounded time.

An adapter of a stranger brings the patterns, and Python's ``re`` backtracks:
``(([a-z_.])+.)+[A-Z]`` takes for ever on an ordinary path. Such a pattern is only parsed by ``re``
and matched by sets of positions: the work is at most the number of its parts times the square of
the path's length, and all patterns of an adapter together have a limit.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

if sys.version_info >= (3, 11):
    from re import _parser as parser
else:
    import sre_parse as parser

Value = TypeVar("Value")

MAX_PATTERNS = 20_000
MAX_LENGTH = 2_000_000
"""Characters of all patterns of one field together; a list of 10,000 full paths has 600,000."""
_MAX_PARTS = 2_000
"""Parts of one pattern that is matched by sets of positions."""
_MAX_DEPTH = 50
_MAX_STEPS = 1_000_000
"""Positions looked at for all paths and patterns of one table; a few seconds."""
_MAX_CHOICES = 16

# Nothing but characters, dots and alternatives of these: ``re`` tries each alternative once.
_PLAIN = re.compile(r"\^?(?:\((?:\?:)?)?(?:[\w.\-/ |]|\\[.\-_/])*\)?\$?")
_LITERAL_END = re.compile(r"[\w\-/ ]*$")


class PatternError(ValueError):
    """A pattern that is no regular expression, or one that can't be matched in bounded time."""


@dataclass(frozen=True, eq=False)
class PathPattern:
    """A regular expression for a path or the end of one, as PEFT uses ``rank_pattern``."""

    text: str
    compiled: re.Pattern[str] | None = None
    """Where ``re`` can't take long."""
    parts: Sequence[Any] = ()
    """Otherwise: what ``re`` parsed."""

    @classmethod
    def parse(cls, text: str, *, ends: bool = True) -> PathPattern:
        """Read a pattern.

        Args:
            text: the regular expression.
            ends: whether it may match the end of a path alone, as ``rank_pattern`` does and
                ``target_modules`` doesn't.

        Raises:
            PatternError: it is no regular expression, or has what is not matched here.
        """
        # What PEFT makes of a key; a pattern with an unbalanced parenthesis may be one only here.
        whole = rf"(.*\.)?({text})$" if ends else rf"(?:{text})$"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if _is_plain(text):
                    return cls(text, compiled=re.compile(whole))
                own, parts = _parsed(text), _parsed(whole)
        except (re.error, RecursionError, OverflowError) as error:
            raise PatternError(f"not a regular expression ({error})") from error
        size = _checked_size(parts, 0)
        if size > _MAX_PARTS:
            raise PatternError(f"of {size} parts, and at most {_MAX_PARTS} are matched")
        repeats, choices = _branching(own)
        if repeats <= 1 and choices <= _MAX_CHOICES:
            return cls(text, compiled=re.compile(whole))
        return cls(text, parts=parts)

    def matches(self, path: str, budget: Budget | None = None) -> bool:
        """Whether PEFT's ``re.match`` of this key finds the path.

        Raises:
            PatternError: the budget of steps is used up.
        """
        if self.compiled is not None:
            return self.compiled.match(path) is not None
        return bool(_Matcher(path, budget or Budget()).ends_of(self.parts, 0))


@dataclass
class Budget:
    """Steps that may still be taken."""

    steps: int = _MAX_STEPS

    def take(self, steps: int) -> None:
        """Use some up; raise PatternError where there are none left."""
        self.steps -= steps
        if self.steps < 0:
            raise PatternError("patterns that take too long to match")


def _branching(parts: Iterable[Any]) -> tuple[int, int]:
    """(repeats, ways to choose among alternatives); a repeat of more than one part counts twice."""
    repeats, choices = 0, 1
    for op, value in parts:
        if str(op) in ("MAX_REPEAT", "MIN_REPEAT"):
            simple = len(value[2]) == 1 and str(value[2][0][0]) in _ITEMS
            repeats += 1 if simple else 2
        elif str(op) == "BRANCH":
            choices *= len(value[1])
        for inner in _inner(str(op), value):
            inner_repeats, ways = _branching(inner)
            repeats += inner_repeats
            choices *= ways
    return repeats, choices


def _parsed(text: str) -> list[Any]:
    sequence: Any = parser.parse(text)
    return list(sequence)


def _is_plain(text: str) -> bool:
    return _PLAIN.fullmatch(text) is not None


@dataclass(frozen=True, eq=False)
class PatternTable(Generic[Value]):
    """Patterns with a value each; the first one that matches counts, as in PEFT."""

    patterns: Mapping[str, Value] = field(default_factory=dict)
    _parsed: list[tuple[PathPattern, Value]] = field(default_factory=list)
    _ends: dict[str, list[int]] = field(default_factory=dict)
    _others: list[int] = field(default_factory=list)
    _known: dict[str, Value | None] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if len(self.patterns) > MAX_PATTERNS or sum(map(len, self.patterns)) > MAX_LENGTH:
            raise PatternError(f"too long: at most {MAX_PATTERNS} patterns are matched")
        for text, value in self.patterns.items():
            try:
                self._parsed.append((PathPattern.parse(text), value))
            except PatternError as error:
                shown = text if len(text) <= 60 else f"{text[:57]}..."
                raise PatternError(f"{shown!r}, {error}") from error
            # Thousands of patterns are full paths: only those with the path's last word are tried.
            end = _LITERAL_END.search(text)
            last = end[0] if end and _is_plain(text) and "|" not in text else ""
            place = self._ends.setdefault(last, []) if last else self._others
            place.append(len(self._parsed) - 1)

    def find(self, path: str) -> Value | None:
        """The first matching pattern's value; None: there is none.

        Raises:
            PatternError: matching takes too long.
        """
        if path not in self._known:
            self._known[path] = self._find(path)
        return self._known[path]

    def _find(self, path: str) -> Value | None:
        if not self._parsed:
            return None
        candidates = list(self._others)
        for length in {len(end) for end in self._ends}:
            candidates += self._ends.get(path[-length:], ())
        for i in sorted(candidates):
            pattern, value = self._parsed[i]
            if pattern.matches(path, self.budget):
                return value
        return None


_ITEMS = frozenset({"LITERAL", "NOT_LITERAL", "ANY", "IN"})
_ANCHORS = frozenset({"AT_BEGINNING", "AT_BEGINNING_STRING", "AT_END", "AT_END_STRING"})


def _checked_size(parts: Iterable[Any], depth: int) -> int:
    """Number of parts, nested ones included.

    Raises:
        PatternError: a part that is not matched here.
    """
    if depth > _MAX_DEPTH:
        raise PatternError("nested too deeply")
    size = 0
    for op, value in parts:
        size += 1
        for inner in _inner(str(op), value):
            size += _checked_size(inner, depth + 1)
    return size


def _inner(op: str, value: Any) -> list[Any]:
    """The sequences inside a part.

    Raises:
        PatternError: a part that is not matched here.
    """
    if op in _ITEMS or (op == "AT" and str(value) in _ANCHORS):
        return []
    if op == "BRANCH":
        return list(value[1])
    if op == "SUBPATTERN" and not value[1] and not value[2]:
        return [value[3]]
    if op in ("MAX_REPEAT", "MIN_REPEAT"):
        return [value[2]]
    if op in ("ASSERT", "ASSERT_NOT") and value[0] > 0:
        return [value[1]]
    raise PatternError(f"with {op.lower().replace('_', ' ')}, which is not matched in bounded time")


class _Matcher:
    """Where the parts of a pattern can end in one text."""

    def __init__(self, text: str, budget: Budget) -> None:
        self.text = text
        self._budget = budget
        self._known: dict[tuple[int, int], frozenset[int]] = {}

    def ends_of(self, parts: Iterable[Any], start: int) -> frozenset[int]:
        """Positions at which a match of the parts from a position can end."""
        places = frozenset({start})
        for part in parts:
            self._budget.take(len(places))
            places = frozenset().union(*(self._ends(part, at) for at in places))
            if not places:
                break
        return places

    def _ends(self, part: Any, at: int) -> frozenset[int]:
        key = (id(part), at)
        if key not in self._known:
            self._known[key] = self._compute(str(part[0]), part[1], at)
        return self._known[key]

    def _compute(self, op: str, value: Any, at: int) -> frozenset[int]:
        if op in _ITEMS:
            fits = at < len(self.text) and _fits(op, value, self.text[at])
            return frozenset({at + 1}) if fits else frozenset()
        if op == "AT":
            # "$" also matches before a line's end at the very end of the text.
            ends = {len(self.text)} | ({len(self.text) - 1} if self.text[-1:] == "\n" else set())
            here = at == 0 if "BEGINNING" in str(value) else at in ends
            return frozenset({at}) if here else frozenset()
        if op == "BRANCH":
            return frozenset().union(*(self.ends_of(one, at) for one in value[1]))
        if op == "SUBPATTERN":
            return self.ends_of(value[3], at)
        if op in ("ASSERT", "ASSERT_NOT"):
            here = bool(self.ends_of(value[1], at)) == (op == "ASSERT")
            return frozenset({at}) if here else frozenset()
        least, most, inner = value
        return self._repeated(least, most, inner, at)

    def _repeated(self, least: int, most: Any, inner: Any, at: int) -> frozenset[int]:
        # More rounds than characters only add rounds that match nothing.
        rounds = len(self.text) + 1
        places = frozenset({at})
        for _ in range(min(least, rounds)):
            places = frozenset().union(*(self.ends_of(inner, p) for p in places))
        reached, new = set(places), set(places)
        for _ in range(min(int(most) - least, rounds)):
            new = {end for p in new for end in self.ends_of(inner, p)} - reached
            if not new:
                break
            reached |= new
        return frozenset(reached)


def _fits(op: str, value: Any, character: str) -> bool:
    if op == "ANY":
        return character != "\n"
    if op != "IN":
        return bool(ord(character) == value) == (op == "LITERAL")
    negated = bool(value) and str(value[0][0]) == "NEGATE"
    return any(_in_class(str(kind), one, character) for kind, one in value) != negated


def _in_class(kind: str, value: Any, character: str) -> bool:
    if kind == "LITERAL":
        return bool(ord(character) == value)
    if kind == "RANGE":
        return bool(value[0] <= ord(character) <= value[1])
    if kind == "CATEGORY":
        name = str(value).removeprefix("CATEGORY_")
        of_kind = _CATEGORIES[name.removeprefix("NOT_")].match(character) is not None
        return of_kind != name.startswith("NOT_")
    return False


_CATEGORIES = {"DIGIT": re.compile(r"\d"), "SPACE": re.compile(r"\s"), "WORD": re.compile(r"\w")}
