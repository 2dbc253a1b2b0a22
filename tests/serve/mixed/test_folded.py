"""Tasks that run with their own factors: the same numbers as through the bases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from serve.mixed.test_batch import bert, each_alone, gpt2, logits, tokens, without_heads
from sharespace import Share
from sharespace.serve.mixed import MixedTasks
from sharespace.serve.mixed.folded import folded, is_kept, with_own, with_updates, worth_folding
from sharespace.serve.mixed.stacks import RowTasks, Stack
from sharespace.subspace.adapter import ModuleShape
from sharespace.subspace.coefficients import Coefficients, Core, Factors, PerTask
from sharespace.subspace.layer import LayerSubspace
from tuner.spaces import space

CPU = torch.device("cpu")


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
    k=st.integers(1, 12),
    kinds=st.lists(st.sampled_from(["factors", "private", "core", "none"]), max_size=5),
    rows=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    length=st.integers(1, 6),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_own_factors_are_the_stack(
    k: int, kinds: list[str], rows: list[int], length: int, seed: int
) -> None:
    """By row and side by side, with rows of the base model, at any rank."""
    generator = torch.Generator().manual_seed(seed)
    n, d = 20, 24
    values: list[Coefficients | None] = []
    for i, kind in enumerate(kinds):
        sides = (n, d) if kind == "private" else (k, k)
        pair = [normal(side, 1 + i % 3, generator=generator) for side in sides]
        core = normal(k, k, generator=generator)
        made: dict[str, Coefficients] = {
            "factors": Factors(*pair), "private": PerTask(*pair), "core": Core(core),
        }  # fmt: skip
        values.append(made.get(kind))
    stack = stack_of((n, d), k, values)
    chosen = RowTasks.of([min(row, len(values)) for row in rows], CPU)
    if not chosen.numbers:
        return
    narrow = folded(stack, chosen, stack.width(chosen.numbers))
    module = nn.Linear(d, n)
    x = normal(len(rows), length, d, generator=generator)
    private = {s: stack.per_task[s] for s in stack.per_task if s in chosen.numbers}
    wide = None if stack.is_empty else stack
    with torch.no_grad():
        found = with_own(module, narrow, x, chosen, module(x))
        expected = with_updates(module, wide, x, chosen.slots, private, module(x))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def stack_of_tasks(count: int) -> Stack:
    generator = torch.Generator().manual_seed(0)
    tasks = [Factors(*(normal(32, 8, generator=generator) for _ in "lr")) for _ in range(count)]
    return stack_of((64, 64), 32, tasks)


def test_when_it_is_worth_it() -> None:
    """k = 32, p = 8, 64 rows: what the benchmark has."""

    def worth(tasks: int, length: int, by_row: bool = True) -> bool:
        return worth_folding(stack_of_tasks(1), 8, tasks, (64, length), by_row)

    assert [t for t in (1, 2, 4, 16, 32, 64) if worth(t, 16)] == [1, 2, 4, 16]
    assert [t for t in (1, 2, 4, 16, 32, 64) if worth(t, 128)] == [1, 2, 4, 16, 32, 64]
    assert [t for t in (1, 2, 3, 4, 16) if worth(t, 1)] == [1, 2], "a step: two are as narrow"
    assert [t for t in (1, 2, 3, 4, 16) if worth(t, 128, False)] == [1, 2], "side by side"
    assert [t for t in (1, 2, 3, 4, 16) if is_kept(stack_of_tasks(1), 8, t)] == [1, 2, 3]
    assert not worth_folding(stack_of_tasks(1), 8, 1, (1, 1), True), "one token"
    core = stack_of((64, 64), 32, [Core(torch.ones(32, 32))])
    assert core.width([1]) == 32
    assert not worth_folding(core, 32, 1, (64, 10**6), True), "as wide as the bases"


def test_the_output_is_changed_itself_only_without_gradients() -> None:
    stack, module = stack_of_tasks(3), nn.Linear(64, 64)
    chosen = RowTasks.of([1, 2, 3], CPU)
    narrow = folded(stack, chosen, 8)
    x = torch.randn(3, 5, 64)
    pairs: list[tuple[Stack | None, dict[int, tuple[Tensor, Tensor]]]] = [
        (stack, {}), (None, {2: (torch.randn(64, 2), torch.randn(64, 2))}),
    ]  # fmt: skip
    ways = [partial(with_updates, module, s, x, chosen.slots, p) for s, p in pairs]
    ways.append(partial(with_own, module, narrow, x, chosen))
    for way in ways:
        trained = module(x)
        before = trained.detach().clone()
        other = way(trained)
        assert other.requires_grad
        assert torch.equal(trained, before)
        plain = before.clone()
        assert way(plain).data_ptr() == plain.data_ptr()
        torch.testing.assert_close(plain, other, rtol=1e-5, atol=1e-5)


def test_other_hooks_see_the_output_with_the_update() -> None:
    """Also one that was there before, and that keeps the tensor."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).eval()
    share = Share(space(model, k=8, tasks=("a", "b", "c")))
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda _module, _args, output: seen.append(output))
    x = torch.randn(3, 16)
    mixed = MixedTasks(model, share)
    with torch.no_grad(), mixed.tasks(["a", "b", "c"]):
        model(x)
    mixed.remove()
    each_alone(model, share, ["a", "b", "c"], model, x)
    torch.testing.assert_close(seen[0], torch.cat(seen[1:]), rtol=1e-4, atol=1e-5)


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


def test_many_tasks_with_long_rows() -> None:
    """Factors are made in the pass and not kept: memory does not grow with the tasks."""
    model = gpt2()
    tasks = tuple("abcdef")
    share = Share(without_heads(space(model, k=12, tasks=tasks), "lm_head"))
    names = (*tasks, None, "a", "f", "b")
    x = torch.randint(2, 39, (len(names), 30), generator=torch.Generator().manual_seed(1))
    run = partial(logits, model)
    expected = each_alone(model, share, names, run, x)
    mixed = MixedTasks(model, share)
    with torch.no_grad(), mixed.tasks(names):
        found = run(x)
        block = mixed._block
        assert block is not None
        name, stack = next(iter(mixed.slots.stacks.items()))
        module = model.get_submodule(name)
        hidden = torch.randn(len(names), 30, module.nx)
        narrow = block._folded(name, module, stack, block.of(hidden), module(hidden))
        assert narrow is not None, "the narrow way was taken"
    assert not mixed.slots.folded
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
