"""Whose a pass's rows are, as tensors: made once a pass, used by every module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.nn.stacks import BASE_SLOT


@dataclass(frozen=True, eq=False)
class Chosen:
    """The tasks of the rows of one pass, on one device."""

    slots: Tensor
    """int64 [rows]."""
    numbers: tuple[int, ...]
    """The different slots, ascending, without the base model's."""
    tasks: Tensor
    """The same, int64 [tasks]."""
    place: Tensor
    """int64 [rows]: where a row's slot is in ``tasks``; rows of the base model: anywhere."""
    mine: Tensor | None
    """bool [tasks, rows]: whose a row is; None: all rows are of one task."""
    adapted: Tensor | None
    """bool [rows]: rows that have a task; None: all have one."""

    @classmethod
    @torch.inference_mode(False)
    def of(cls, rows: Sequence[int], device: torch.device) -> Chosen:
        """From the slot of each row."""
        tasks = tuple(sorted({slot for slot in rows if slot != BASE_SLOT}))
        known = {slot: place for place, slot in enumerate(tasks)}
        slots, among = (torch.tensor(x, device=device) for x in (rows, tasks))
        place = torch.tensor([known.get(slot, 0) for slot in rows], device=device)
        with_base = BASE_SLOT in rows
        mixed = with_base or len(tasks) > 1
        return cls(
            slots,
            tasks,
            among,
            place,
            among[:, None] == slots if mixed else None,
            slots != BASE_SLOT if with_base else None,
        )
