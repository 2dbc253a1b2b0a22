"""Generation for rows of different tasks and settings, on transformers' ``generate``.

One row of a generating batch: its tokens, the text so far, and when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sharespace.serve.requests import Generate, Piece, Sampling

_UNFINISHED = "\ufffd"
"""What tokenizers give for bytes that are not a whole character yet."""


def generate(model: Any, tokenizer: Any, rows: Sequence[Row]) -> None:
    """Continue all rows together, until each is done; pieces of text go out on the way.

    Args:
        model: a causal language model; row i runs with whatever task it has been given.
        tokenizer: its tokenizer.
        rows: at least one.
    """
    # Masked wherever it stands, so any token will do where there is none for padding.
    pad = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    batch = pad_left([row.request.tokens for row in rows], pad, model.device)
    model.generate(
        **batch,
        max_new_tokens=max(row.request.sampling.max_tokens for row in rows),
        # Each row chooses its own tokens (_Choice) and ends by its own rule (Row).
        do_sample=False,
        num_beams=1,
        pad_token_id=pad,
        streamer=_Streamer(rows),
        stopping_criteria=[_Ends(rows)],
        logits_processor=[_Choice([row.request.sampling for row in rows])],
    )


def pad_left(
    texts: Sequence[Sequence[int]], pad: int, device: torch.device | str
) -> dict[str, Tensor]:
    """input_ids and attention_mask, int64 [rows, longest]; padding comes first."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), pad)
    mask = torch.zeros(len(texts), longest, dtype=torch.long)
    for i, tokens in enumerate(texts):
        ids[i, longest - len(tokens) :] = torch.tensor(tokens)
        mask[i, longest - len(tokens) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


class _Streamer:
    """transformers calls ``put`` with the prompts, and then with one token a row."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._prompts = True

    def put(self, value: Tensor) -> None:
        if self._prompts:
            self._prompts = False
            return
        for row, token in zip(self._rows, value.flatten().tolist(), strict=True):
            row.push(token)

    def end(self) -> None:
        """Nothing is kept back."""


class _Ends:
    """A stopping criterion: which rows are done."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, _scores: Any, **_kwargs: Any) -> Tensor:
        return torch.tensor([row.done for row in self._rows], device=input_ids.device)


class _Choice:
    """A logits processor that leaves each row one token: the one that it samples.

    Every row has a generator of its own, so that an answer with a seed does not depend on the other
    rows of its batch.
    """

    def __init__(self, rows: Sequence[Sampling]) -> None:
        self._rows = rows
        self._generators = [_generator(row.seed) for row in rows]

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        for i, (row, generator) in enumerate(zip(self._rows, self._generators, strict=True)):
            if row.temperature > 0:
                token = sample(scores[i], row, generator)
                scores[i] = -torch.inf
                scores[i, token] = 0
        return scores


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    return generator


def sample(scores: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token.

    Args:
        scores: logits [vocabulary].
        sampling: its temperature is above 0.
        generator: on the CPU.
    """
    chances = (scores.float().cpu() / sampling.temperature).softmax(0)
    if sampling.top_p < 1:
        sorted_chances, order = chances.sort(descending=True)
        before = sorted_chances.cumsum(0) - sorted_chances
        chances[order[before >= sampling.top_p]] = 0
    return int(torch.multinomial(chances, 1, generator=generator))


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
