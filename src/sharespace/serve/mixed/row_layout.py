"""Which task each row of a forward pass belongs to, and how updates are added to its output.

Generation and guidance repeat the rows that were named. What every module needs to know of the rows
is made once a pass, as tensors. Updates are added in place: a copy of the output costs more time
than they do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sharespace.errors import OptionError
from sharespace.serve.mixed.stacks import BASE_SLOT


@dataclass(frozen=True)
class RowLayout:
    """Slots of the rows that were named, and how a pass may repeat them.

    Beams and images of one prompt stand side by side; guidance puts whole copies of the batch one
    after the other (diffusers: ``torch.cat([latents] * 2)``)::

        a b   beams=2 ->   a a b b   copies=2 ->   a a b b a a b b
    """

    numbers: tuple[int, ...]
    """Slot of each row that was named."""
    beams: int
    """Rows that generation makes of each, side by side."""
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


@dataclass(frozen=True, eq=False)
class RowTasks:
    """The tasks of the rows of one pass, on one device."""

    slots: Tensor
    """int64 [rows]."""
    numbers: tuple[int, ...]
    """The different slots, ascending, without the base model's."""
    tasks: Tensor
    """int64 [tasks]: the same as a tensor."""
    place: Tensor
    """int64 [rows]: where a row's slot is in ``tasks``; for rows of the base model any index."""
    owners: Tensor | None
    """bool [tasks, rows]: True where the row is the task's; None: all rows are of one task."""
    with_task: Tensor | None
    """bool [rows]: rows that have a task; None: all have one."""

    @classmethod
    # They are kept for a whole block, in which one pass may be in inference mode and another not.
    @torch.inference_mode(False)
    def of(cls, rows: Sequence[int], device: torch.device) -> RowTasks:
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


def changeable(result: Tensor, rows: bool) -> Tensor:
    """The output itself where nobody has seen it, as our hook is the first; else a copy.

    Args:
        result: of a module; a copy is made where it needs gradients.
        rows: its rows must lie one after the other, as products want it.
    """
    if rows and not result.is_contiguous():
        return result.contiguous()
    return result.clone() if result.requires_grad else result


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a b.

    Args:
        out: [m, n], or [batch, m, n].
        a: [m, w], or [batch, m, w].
        b: [w, n], or [batch, w, n].
    """
    if out.dtype != a.dtype:
        # Cast first: a sum of two dtypes takes ten times as long.
        out.add_((a @ b).to(out.dtype))
    elif out.ndim == 3:
        out.baddbmm_(a, b)
    else:
        out.addmm_(a, b)
