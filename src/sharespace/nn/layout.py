"""Which task each row of a pass belongs to, where generation or guidance has repeated the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sharespace.errors import OptionError


@dataclass(frozen=True)
class Layout:
    """Slots of the rows that were named, and how a pass may repeat them.

    Beams and images of one prompt stand side by side; guidance puts whole copies of the batch one
    after the other (diffusers: ``torch.cat([latents] * 2)``)::

        a b   beams=2 ->   a a b b   copies=2 ->   a a b b a a b b
    """

    numbers: tuple[int, ...]
    """Slot of each row that was named."""
    beams: int
    copies: Callable[[], int]
    """Asked in a pass, as a pipeline knows its guidance only while it runs."""

    def of(self, count: int) -> tuple[int, ...]:
        """The slot of each row of a pass.

        Raises:
            OptionError: it has another number of rows than was named.
        """
        if count == len(self.numbers):
            return self.numbers
        beams = tuple(n for n in self.numbers for _ in range(self.beams))
        copies = 1 if count == len(beams) else self.copies()
        if count == len(beams) * copies:
            return beams * copies
        raise OptionError(
            f"a batch of {count} rows",
            f"{len(self.numbers)} tasks were named, {self.beams} beams each, copies={copies}",
            "Name one task a row. beams=N: N rows of each side by side (num_beams, "
            "num_images_per_prompt); copies=2: the whole batch twice, as guidance does",
        )
