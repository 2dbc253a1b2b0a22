"""Few tasks in a batch run with their own factors: the same numbers as through the bases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nn.spaces import space
from nn.test_batch import bert, each_alone, gpt2, logits, tokens, without_heads
from sharespace import Share
from sharespace.nn import MixedTasks
from sharespace.nn.folded import folded
from sharespace.nn.rows import with_updates
from sharespace.nn.stacks import Stack
from sharespace.shapes import ModuleShape
from sharespace.subspace.state import Coefficients, Core, Factors, LayerSubspace, Private

MANY = 10**6
"""Tokens that pay for any folding."""


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator)


def stack_of(sides: tuple[int, int], k: int, values: Sequence[Coefficients | None]) -> Stack:
    """Slots 1, 2, ... with these values."""
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(normal(side, k, generator=generator))[0] for side in sides]
    layer = LayerSubspace(ModuleShape(*sides), *bases)
    stack = Stack.empty(layer, len(values) + 1, torch.float32, "cpu")
    for slot, value in enumerate(values, 1):
        stack.put(slot, value)
    return stack


@given(
    k=st.integers(4, 12),
    kinds=st.lists(st.sampled_from(["factors", "private", "none"]), min_size=1, max_size=3),
    rows=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    length=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_folded_is_the_stack(
    k: int, kinds: list[str], rows: list[int], length: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, d = 20, 24
    values: list[Coefficients | None] = []
    for kind in kinds:
        sides = (n, d) if kind == "private" else (k, k)
        pair = [normal(side, 1, generator=generator) for side in sides]
        made: dict[str, Coefficients] = {"factors": Factors(*pair), "private": Private(*pair)}
        values.append(made.get(kind))
    stack = stack_of((n, d), k, values)
    slots = torch.tensor([min(row, len(values)) for row in rows])
    chosen = set(slots.tolist())
    narrow = folded(stack, chosen, MANY)
    if narrow is None:
        return
    module = nn.Linear(d, n)
    x = normal(len(rows), length, d, generator=generator)
    with torch.no_grad():
        found = with_updates(module, narrow, x, slots, {}, module(x))
        private = {s: stack.private[s] for s in chosen & stack.private.keys()}
        wide = None if stack.is_empty else stack
        expected = with_updates(module, wide, x, slots, private, module(x))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_when_it_is_worth_it() -> None:
    generator = torch.Generator().manual_seed(0)
    tasks = [Factors(*(normal(32, 8, generator=generator) for _ in "lr")) for _ in range(6)]
    stack = stack_of((64, 64), 32, tasks)
    assert folded(stack, {1}, MANY) is not None
    assert folded(stack, {0, 1, 2}, MANY) is not None
    assert folded(stack, {1, 2, 3, 4}, MANY) is None, "as wide as the bases"
    assert folded(stack, {1}, 1) is None, "one token does not pay for it"
    assert folded(stack, {0}, MANY) is None, "no task, no factors"
    core = stack_of((64, 64), 32, [Core(normal(32, 32, generator=generator))])
    assert folded(core, {1}, MANY) is None, "a whole core is as wide as the bases"


@pytest.mark.parametrize("names", [("b",) * 6, ("b", "b", None, "b", None, "b")])
def test_a_batch_of_one_task(names: tuple[str | None, ...]) -> None:
    """The model's modules are folded once a block, and rows of the base model stay apart."""
    for make, head in ((bert, "classifier"), (gpt2, "lm_head")):
        model, x = make(), tokens()
        share = Share(without_heads(space(model, k=8, tasks=("a", "b", "c")), head))
        run = partial(logits, model)
        expected = each_alone(model, share, names, run, x)
        mixed = MixedTasks(model, share)
        with torch.no_grad(), mixed.tasks(names):
            found = run(x)
            first = dict(mixed.slots.folded)
            assert first, "the narrow way was taken"
        with torch.no_grad(), mixed.tasks(names):
            run(x)
            assert all(mixed.slots.folded[n] is f for n, f in first.items())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_convolutions_of_one_task() -> None:
    model = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, stride=2, groups=4),
        nn.Conv2d(16, 9, 1),
    ).eval()
    share = Share(space(model, k=8, tasks=("a", "b", "c")))
    x = torch.randn(4, 16, 6, 6)
    mixed = MixedTasks(model, share)
    with torch.no_grad(), mixed.tasks(["c"] * 4):
        found = model(x)
        assert mixed.slots.folded
    mixed.remove()
    torch.testing.assert_close(
        found, each_alone(model, share, ["c"] * 4, model, x), rtol=1e-4, atol=1e-4
    )


def test_factors_are_forgotten_when_a_slot_changes_its_task() -> None:
    """One slot: every task comes into the place of the one before."""
    model, x = gpt2(), tokens()
    share = Share(without_heads(space(model, k=8, tasks=("a", "b", "c")), "lm_head"))
    mixed = MixedTasks(model, share, slots=1)
    for name in ("a", "b", "a", "c", "c"):
        mixed.remove()
        expected = each_alone(model, share, [name] * len(x), partial(logits, model), x)
        with torch.no_grad(), mixed.tasks([name] * len(x)):
            torch.testing.assert_close(logits(model, x), expected, rtol=1e-4, atol=1e-5)
            assert mixed.slots.folded
