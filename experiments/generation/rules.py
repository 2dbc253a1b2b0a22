"""Rewriting rules: what is made of a few words.

``TAUGHT`` are part of the base model's pretraining; ``RULES`` are tasks of the stream, none of
which the base model has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Rule = Callable[[Sequence[str]], Sequence[str]]
"""At least five words -> words of the answer, at least one."""

SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def kth(k: int) -> Rule:
    """The word at that index, as Python counts."""
    return lambda words: [words[k]]


def part(begin: int | None, end: int | None, step: int | None = None) -> Rule:
    """A slice."""
    return lambda words: words[begin:end:step]


def _reverse(words: Sequence[str]) -> list[str]:
    return list(words)[::-1]


def _halves(words: Sequence[str]) -> list[str]:
    middle = len(words) // 2
    return [*words[middle:], *words[:middle]]


def _ends(words: Sequence[str]) -> list[str]:
    return [words[-1], *words[1:-1], words[0]]


def _neighbours(words: Sequence[str]) -> list[str]:
    pairs = [words[i : i + 2] for i in range(0, len(words), 2)]
    return [word for pair in pairs for word in reversed(pair)]


def _short_or(words: Sequence[str], few: bool) -> list[str]:
    """Words of at most three letters, or the others; where there is none, "none"."""
    return [word for word in words if (len(word) <= 3) == few] or ["none"]


TAUGHT: Mapping[str, tuple[str, Rule]] = {
    "copy": ("copy the text", lambda words: words),
    "first": ("give the first word", kth(0)),
    "last": ("give the last word", kth(-1)),
    "drop-last": ("leave out the last word", part(None, -1)),
    "first-2": ("give the first two words", part(None, 2)),
    "twice": ("write the first word twice", lambda words: [words[0], words[0]]),
    "last-first": ("give the last word and the first word", lambda w: [w[-1], w[0]]),
    "letters": ("give the first letter of the first word", lambda words: [words[0][0]]),
    "from-3": ("begin at the third word", part(2, None)),
    "count": ("count the words", lambda words: [SMALL[len(words)]]),
}
"""Name -> (instruction, rule)."""

RULES: Mapping[str, tuple[str, Rule]] = {
    "last-2": ("give the last two words", part(-2, None)),
    "reverse": ("reverse the words", _reverse),
    "word-2": ("give the second word", kth(1)),
    "word-3": ("give the third word", kth(2)),
    "word-4": ("give the fourth word", kth(3)),
    "word-5": ("give the fifth word", kth(4)),
    "last-but-1": ("give the word before the last", kth(-2)),
    "last-but-2": ("give the third word from the end", kth(-3)),
    "drop-1": ("leave out the first word", part(1, None)),
    "drop-first-last": ("leave out the first word and the last word", part(1, -1)),
    "drop-last-2": ("leave out the last two words", part(None, -2)),
    "first-3": ("give the first three words", part(None, 3)),
    "first-4": ("give the first four words", part(None, 4)),
    "last-3": ("give the last three words", part(-3, None)),
    "words-2-3": ("give the second and third word", part(1, 3)),
    "words-3-4": ("give the third and fourth word", part(2, 4)),
    "odd": ("give every other word", part(None, None, 2)),
    "even": ("give every other word from the second on", part(1, None, 2)),
    "halves": ("swap both halves", _halves),
    "ends": ("swap the first word and the last word", _ends),
    "neighbours": ("swap neighbours", _neighbours),
    "rotate": ("move the first word to the end", lambda w: [*w[1:], w[0]]),
    "rotate-back": ("move the last word to the beginning", lambda w: [w[-1], *w[:-1]]),
    "second-twice": ("write the second word twice", lambda w: [w[1], w[1]]),
    "last-twice": ("write the last word twice", lambda w: [w[-1], w[-1]]),
    "first-thrice": ("write the first word three times", lambda w: [w[0]] * 3),
    "first-last": ("give the first word and the last word", lambda w: [w[0], w[-1]]),
    "short": ("give the words of at most three letters", lambda w: _short_or(w, True)),
    "long": ("give the words of more than three letters", lambda w: _short_or(w, False)),
    "initials": ("give the first letter of each word", lambda words: [w[0] for w in words]),
}
"""Name -> (instruction, rule)."""
