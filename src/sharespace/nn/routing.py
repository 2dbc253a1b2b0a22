"""Which adapter each row of a batch goes through (PEFT's ``adapter_names``)."""

from __future__ import annotations

from dataclasses import dataclass

from sharespace.errors import OptionError

BASE = "__base__"
"""PEFT's name for the base model without any adapter."""


@dataclass(frozen=True)
class Routing:
    """One name a row; it stays on the layers until the next forward pass.

    Gradient checkpointing runs layers again in the backward pass, when a hook of the forward pass
    would be gone.
    """

    names: tuple[str, ...]
    """One a row; ``"__base__"`` for the base model."""
    beams: int = 1
    """Of beam search, which repeats each row that often (but not in an encoder)."""

    def rows(self, count: int) -> tuple[str, ...]:
        """Names for a batch of ``count`` rows.

        Raises:
            OptionError: there are not as many names as rows.
        """
        if count == len(self.names):
            return self.names
        if count == len(self.names) * self.beams:
            return tuple(name for name in self.names for _ in range(self.beams))
        raise OptionError(
            "adapter_names",
            "every row needs the name of one adapter",
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(self.names)} and {count} respectively.",
        )
