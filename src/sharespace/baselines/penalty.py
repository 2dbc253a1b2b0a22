"""A Trainer whose loss has one more term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sharespace.extras import require


def penalised(base: type | None, penalty: Callable[[], Tensor]) -> type:
    """A subclass of a Trainer that adds a penalty to the loss of every training step.

    Args:
        base: the Trainer; None: that of transformers.
        penalty: a scalar with a gradient, asked for at every step.
    """
    parent: Any = base or require("transformers", "train").Trainer

    class Penalised(parent):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
        ) -> Any:
            """The parent's loss; in training the penalty is added."""
            found = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
            if not model.training:
                return found
            loss, outputs = found if return_outputs else (found, None)
            term = penalty().to(loss.device)
            if self.model_accepts_loss_kwargs and kwargs.get("num_items_in_batch") is not None:
                # Such a loss is a part of the accumulated batch's and is not divided again.
                term = term / self.args.gradient_accumulation_steps
            return (loss + term, outputs) if return_outputs else loss + term

    return Penalised
