"""Slots that hold one group subspace only give what slots of all directions give."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from builders import gauss, law
from sharespace.serve.mixed.folded import folded, with_own, with_updates
from sharespace.serve.mixed.stacks import RowTasks, Stack
from sharespace.subspace.adapter import ModuleShape
from sharespace.subspace.coefficients import Coefficients, Core, Factors, PerTask
from sharespace.subspace.layer import LayerSubspace, group_offsets

N, D = 12, 10
PARTS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=4)


def layer_of(parts: Sequence[tuple[int, int]]) -> LayerSubspace:
    k = sum(left for left, _ in parts), sum(right for _, right in parts)
    return LayerSubspace(
        ModuleShape(N, D), gauss(1, N, k[0]).float(), gauss(2, D, k[1]).float(), groups=tuple(parts)
    )


def value_of(kind: str, layer: LayerSubspace, part: int, seed: int) -> Coefficients:
    """Coefficients of one group, of a layer stored per task, or of all directions."""
    left, right = layer.groups[part]
    if kind == "private":
        return PerTask(gauss(seed, N, 2).float(), gauss(seed + 1, D, 2).float())
    if kind == "everywhere":
        return Core(gauss(seed, *layer.k).float())
    mine: Factors | Core = Factors(gauss(seed, left, 2).float(), gauss(seed + 1, right, 2).float())
    if kind == "core":
        mine = Core(gauss(seed, left, right).float())
    return mine.placed(group_offsets(layer.groups)[part], layer.k)


def filled(layer: LayerSubspace, values: Sequence[Coefficients]) -> Stack:
    stack = Stack.empty(layer, len(values) + 1, torch.float32, "cpu")
    for slot, value in enumerate(values, 1):
        stack.put(slot, value)
    return stack


def dense(layer: LayerSubspace, value: Coefficients) -> Tensor:
    found = value.as_update(layer)
    return found.up @ found.down


KINDS = st.lists(
    st.tuples(st.sampled_from(["factors", "core", "private"]), st.integers(0, 9)),
    min_size=1,
    max_size=5,
)


@law(40)
@given(parts=PARTS, kinds=KINDS, everywhere=st.booleans(), positions=st.sampled_from([1, 5]))
def test_every_row_has_its_own_update(
    parts: list[tuple[int, int]], kinds: list[tuple[str, int]], everywhere: bool, positions: int
) -> None:
    layer = layer_of(parts)
    values = [value_of(k, layer, i % len(parts), 7 * n) for n, (k, i) in enumerate(kinds)]
    values += [value_of("everywhere", layer, 0, 99)] * everywhere
    stack = filled(layer, values)
    module, rows = nn.Linear(D, N), [*range(1, len(values) + 1), 0]
    x = gauss(3, len(rows), positions, D).float()
    base = module(x).detach()
    wanted = base.clone()
    for row, value in enumerate(values):
        wanted[row] += x[row] @ dense(layer, value).mT
    chosen = RowTasks.of(rows, torch.device("cpu"))
    private = dict(stack.per_task)
    found = with_updates(module, stack, x, chosen.slots, private, base.clone())
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    own = folded(stack, chosen, stack.width(chosen.numbers))
    found = with_own(module, own, x, chosen, base.clone())
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["factors", "core"])
def test_slots_are_as_wide_as_the_largest_subspace(kind: str) -> None:
    layer = layer_of([(2, 3), (4, 4), (3, 1)])
    stack = filled(layer, [value_of(kind, layer, part, part) for part in range(3)])
    assert stack.left.shape[2] == 4
    wide = LayerSubspace(layer.shape, layer.left_basis, layer.right_basis)
    whole = filled(wide, [Core(gauss(1, *layer.k).float())])
    assert stack.nbytes / len(stack.left) < 0.4 * whole.nbytes / len(whole.left)


def test_a_task_of_several_subspaces_makes_slots_of_all_directions() -> None:
    layer = layer_of([(2, 2), (3, 3)])
    values = [value_of(k, layer, 1, 5) for k in ("core", "everywhere")]
    stack = filled(layer, values)
    assert stack.groups is None
    assert stack.left.shape[2] == 5
