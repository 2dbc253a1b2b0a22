"""One row of a generating batch: its tokens, the text so far, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sharespace.serve.requests import Generate, Piece

_UNFINISHED = "\ufffd"
"""What tokenizers give for bytes that are not a whole character yet."""


class Row:
    """An answer that grows token by token.

    Text is handed out as soon as no stop text can begin in it any more.
    """

    def __init__(
        self,
        request: Generate,
        tokenizer: Any,
        ends: frozenset[int],
        say: Callable[[Piece], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self.request = request
        self.done = False
        self._tokenizer = tokenizer
        self._ends = ends
        self._say = say
        self._cancelled = cancelled
        self._tokens: list[int] = []
        self._text = ""
        self._said = 0

    def push(self, token: int) -> None:
        """One more token; nothing happens once the row is done."""
        if self.done:
            return
        if self._cancelled():
            self.done = True
            return
        self._tokens.append(token)
        if token in self._ends:
            self._finish("stop")
            return
        self._text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        if (found := self._stopped()) is not None:
            self._text = self._text[:found]
            self._finish("stop")
        elif len(self._tokens) >= self.request.sampling.max_tokens:
            self._finish("length")
        else:
            self._hand_out(self._certain())

    def _stopped(self) -> int | None:
        """Where the first stop text begins."""
        places = [self._text.find(stop) for stop in self.request.sampling.stop]
        return min((place for place in places if place >= 0), default=None)

    def _certain(self) -> int:
        """Up to where the text will not change: no half character, no beginning of a stop."""
        end = len(self._text.rstrip(_UNFINISHED))
        for stop in self.request.sampling.stop:
            for size in range(min(len(stop) - 1, end), 0, -1):
                if self._text[:end].endswith(stop[:size]):
                    end -= size
                    break
        return end

    def _hand_out(self, end: int) -> None:
        if end > self._said:
            piece = Piece(self._text[self._said : end], None, len(self._tokens))
            self._said = end
            self._say(piece)

    def _finish(self, reason: str) -> None:
        self.done = True
        self._say(Piece(self._text[self._said :], reason, len(self._tokens)))
