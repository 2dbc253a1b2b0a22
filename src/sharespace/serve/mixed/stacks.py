"""Coefficients of many tasks of one module, stacked, so that each row of a batch takes its own.

Where groups of tasks have their own subspaces (docs/method.md, "Notation"), a slot holds the
coefficients of one group subspace only, and the offset of its first direction.

Generation and guidance repeat the rows that were named. What every module needs to know of the rows
is made once a pass, as tensors. Updates are added in place: a copy of the output costs more time
than they do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sharespace.errors import OptionError
from sharespace.subspace.coefficients import Coefficients
from sharespace.subspace.layer import LayerSubspace

BASE_SLOT = 0
"""The slot of the base model without any task: its coefficients are always zero."""

LEFT, RIGHT = 0, 1


@dataclass(eq=False)
class Stack:
    """One module: bases once, and coefficients in numbered slots.

    ::

        dW_i x = beta (E_i (F_i^T (alpha^T x)))      factors, while slots take fewer numbers so
        dW_i x = beta (C_i (alpha^T x))              cores

    alpha^T x and beta(.) are computed once for all rows; only k x p (or k x k) numbers a row are
    gathered.
    """

    left_basis: Tensor
    """beta, n x k_left; a column's numbers lie side by side, which products read fastest."""
    right_basis: Tensor
    """alpha, d x k_right, in the same way."""
    left: Tensor
    """E^T, [slots, p, k_left]; with cores C^T, [slots, k_right, k_left]."""
    right: Tensor | None
    """F^T, [slots, p, k_right]; None: ``left`` holds cores."""
    per_task: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Slot -> (P, Q), n x q and d x q, of tasks that keep this module outside the subspace."""
    groups: GroupSlots | None = None
    """Offsets of the slots' group subspaces, of which ``left`` and ``right`` are. None: the slots
    are of all directions."""

    @classmethod
    def empty(
        cls, layer: LayerSubspace, slots: int, dtype: torch.dtype, device: torch.device | str
    ) -> Stack:
        """Slots of p = 0: the base model."""
        groups = GroupSlots.of(layer, slots, device)
        left, right = groups.sizes if groups else layer.k
        return cls(
            layer.left_basis.to(device, dtype).mT.contiguous().mT,
            layer.right_basis.to(device, dtype).mT.contiguous().mT,
            torch.zeros(slots, 0, left, dtype=dtype, device=device),
            torch.zeros(slots, 0, right, dtype=dtype, device=device),
            groups=groups,
        )

    @property
    def nbytes(self) -> int:
        """Of the slots, without the bases."""
        held = [self.left, *([] if self.right is None else [self.right])]
        held += [t for pair in self.per_task.values() for t in pair]
        return sum(t.numel() * t.element_size() for t in held)

    def put(self, slot: int, value: Coefficients | None) -> None:
        """Fill a slot; None: the task does not adapt this module."""
        self.per_task.pop(slot, None)
        self.left[slot] = 0
        if self.right is not None:
            self.right[slot] = 0
        if value is None:
            return
        if value.is_shared:
            self._fill(slot, value)
        else:
            left, right = value.factors()
            self.per_task[slot] = left.to(self.left), right.to(self.left)

    def _fill(self, slot: int, value: Coefficients) -> None:
        if self.groups is not None and not self.groups.fits(value):
            self._open()
        if self.right is not None and value.rank > self.left.shape[1]:
            self._widen(value.rank)
        if self.groups is not None:
            self.groups.move(slot, value.offset)
        if self.right is None:
            core = value.core((self.left_basis.shape[1], self.right_basis.shape[1]))
            inner = self._cut(core, LEFT, value)
            self.left[slot] = self._cut(inner.mT, RIGHT, value).to(self.left)
            return
        e, f = value.factors()
        self.left[slot, : e.shape[1]] = self._cut(e, LEFT, value).mT.to(self.left)
        self.right[slot, : f.shape[1]] = self._cut(f, RIGHT, value).mT.to(self.right)

    def _cut(self, matrix: Tensor, side: int, value: Coefficients) -> Tensor:
        """The rows that belong to the group subspace of a task."""
        if self.groups is None:
            return matrix
        return self.groups.cut(matrix, side, value.offset[side])

    def _open(self) -> None:
        """Slots of all directions, because a task uses several subspaces."""
        every, p = torch.arange(len(self.left), device=self.left.device), self.left.shape[1]
        left, right = self.left_of(every, p), self.right_of(every, p)
        if self.right is None and self.groups is not None:
            # C^T has its rows in the group subspace, too.
            left = self.groups.spread(left.mT, every, RIGHT).mT
        self.left, self.right, self.groups = left, right, None

    def _widen(self, p: int) -> None:
        """Slots of pseudo-rank p, or of whole cores where these are smaller."""
        if self.right is None:
            return
        slots, before, k_left = self.left.shape
        k_right = self.right.shape[2]
        # From here on factors would be more numbers than the core that they multiply to.
        if p * (k_left + k_right) >= k_left * k_right:
            self.left, self.right = self.right.mT @ self.left, None
            return
        added = p - before
        self.left = torch.cat([self.left, self.left.new_zeros(slots, added, k_left)], 1)
        self.right = torch.cat([self.right, self.right.new_zeros(slots, added, k_right)], 1)

    def coordinates(self, hidden: Tensor, slots: Tensor) -> Tensor:
        """alpha^T x of each row -> E F^T alpha^T x.

        Args:
            hidden: [rows, positions, k_right].
            slots: int64 [rows].

        Returns:
            [rows, positions, k_left].
        """
        if self.groups is not None:
            hidden = self.groups.take(hidden, slots)
        if self.right is not None:
            hidden = torch.bmm(hidden, self.right.index_select(0, slots).mT)
        hidden = torch.bmm(hidden, self.left.index_select(0, slots))
        return hidden if self.groups is None else self.groups.spread(hidden, slots)

    def left_of(self, slots: Tensor, width: int) -> Tensor:
        """[tasks, at most width, k_left] of these slots, in all directions."""
        taken = self.left[:, :width].index_select(0, slots)
        return taken if self.groups is None else self.groups.spread(taken, slots)

    def right_of(self, slots: Tensor, width: int) -> Tensor | None:
        """[tasks, at most width, k_right]; None: the slots hold cores."""
        if self.right is None:
            return None
        taken = self.right[:, :width].index_select(0, slots)
        return taken if self.groups is None else self.groups.spread(taken, slots, RIGHT)

    def core_inputs(self, slots: Tensor, width: int) -> Tensor:
        """[tasks, width, d]: the directions that the slots' cores read."""
        if self.groups is None:
            return self.right_basis.mT[:width].repeat(len(slots), 1, 1)
        return self.right_basis.mT[self.groups.index(RIGHT, slots)[:, :width]]

    def width(self, slots: Collection[int]) -> int:
        """Columns of own factors n x w and d x w that hold the update of each of these slots."""
        own = [pair[0].shape[1] for slot, pair in self.per_task.items() if slot in slots]
        return max([*own, *[int(self.left.shape[1])] * (len(own) < len(slots))])

    @property
    def is_empty(self) -> bool:
        """True where no slot has coefficients of this module."""
        return self.left.shape[1] == 0


@dataclass(frozen=True, eq=False)
class GroupSlots:
    """The group subspace that each slot is of: an offset a side, and the size of the largest.

    Coefficients are zero outside of the subspace of their own group of tasks, so slots need not be
    as wide as the bases of all groups together.
    """

    offsets: Tensor
    """int64 [2, slots]: first (left, right) direction of a slot's group subspace."""
    sizes: tuple[int, int]
    """Directions (left, right) of a slot: those of the largest group subspace."""
    k: tuple[int, int]
    """Directions (left, right) of the layer, all groups together."""

    @classmethod
    def of(cls, layer: LayerSubspace, slots: int, device: torch.device | str) -> GroupSlots | None:
        """None: the layer has one subspace."""
        if not layer.groups:
            return None
        sizes = max(left for left, _ in layer.groups), max(right for _, right in layer.groups)
        return cls(torch.zeros(2, slots, dtype=torch.long, device=device), sizes, layer.k)

    def fits(self, value: Coefficients) -> bool:
        """Whether a slot has room for them: not where they use the subspaces of several groups."""
        return all(used <= size for used, size in zip(value.used, self.sizes, strict=True))

    def move(self, slot: int, offset: tuple[int, int]) -> None:
        """Set the offset of a slot's group subspace."""
        self.offsets[:, slot] = torch.tensor(offset).to(self.offsets)

    def cut(self, matrix: Tensor, side: int, offset: int) -> Tensor:
        """The rows of a group subspace, zeros where it ends after the last direction."""
        rows = matrix[offset : offset + self.sizes[side]]
        return torch.nn.functional.pad(rows, (0, 0, 0, self.sizes[side] - len(rows)))

    def take(self, hidden: Tensor, slots: Tensor) -> Tensor:
        """[rows, positions, k_right] -> [rows, positions, size]: each row's group subspace."""
        index = self.index(RIGHT, slots)[:, None].expand(-1, hidden.shape[1], -1)
        return hidden.gather(2, index)

    def spread(self, hidden: Tensor, slots: Tensor, side: int = LEFT) -> Tensor:
        """[rows, positions, size] -> [rows, positions, k], zero outside of the group subspace."""
        result = hidden.new_zeros(*hidden.shape[:2], self.k[side])
        index = self.index(side, slots)[:, None].expand(-1, hidden.shape[1], -1)
        # Added, because the last index is there twice where a slot has room beyond the last
        # direction; what is there is zero.
        return result.scatter_add_(2, index, hidden)

    def index(self, side: int, slots: Tensor) -> Tensor:
        """int64 [rows, size]: directions of the slots' group subspaces."""
        steps = torch.arange(self.sizes[side], device=slots.device)
        return (self.offsets[side][slots][:, None] + steps).clamp(max=self.k[side] - 1)


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
