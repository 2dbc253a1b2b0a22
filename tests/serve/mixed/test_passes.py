"""Passes that go past the hooks: made right, or an error; never the base model's answer in silence.

Public reports of the kind: pytorch/pytorch#117758 and #96722 (hooks that come after torch.compile),
#196819 (hooks that a compiled program leaves out).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharespace import Share
from sharespace.errors import MismatchError
from sharespace.serve.mixed import MixedTasks
from tuner.spaces import space

POINTS = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
TASKS = ["a", "b"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.tanh(self.up(x)))
        return out


class Net(nn.Module):
    """Two blocks and a head, as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x)
        return out


def share_of(model: Any, modules: list[str] | None = None) -> Share:
    """Tasks a and b that change the output; None: of all modules."""
    made = space(model, tasks=("a", "b"))
    if modules is None:
        return Share(made)
    tasks = [
        replace(task, coefficients={m: task.coefficients[m] for m in modules})
        for task in made.tasks.values()
    ]
    plain = made.with_layers({m: made.layers[m] for m in modules})
    return Share(plain.with_tasks(tasks))


@torch.no_grad()
def right(share: Share) -> Any:
    """What a model that was never compiled answers."""
    mixed = MixedTasks(Net(), share)
    with mixed.tasks(TASKS):
        return mixed.model(POINTS)


@pytest.fixture(scope="module")
def share() -> Share:
    return share_of(Net())


def compile_whole(model: Any) -> Any:
    return torch.compile(model, backend="eager", fullgraph=True)


def compile_blocks(model: Any) -> Any:
    for i, layer in enumerate(model.layers):
        model.layers[i] = torch.compile(layer, backend="eager")
    return model


def compile_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def compile_part(model: Any) -> Any:
    for layer in model.layers:
        layer.forward = torch.compile(layer.forward, backend="eager")
    return model


def compile_and_attach_to_the_wrapper(model: Any) -> Any:
    return compile_whole(model)


@pytest.mark.parametrize(
    "how",
    [
        compile_whole,
        compile_blocks,
        compile_in_place,
        compile_part,
        compile_and_attach_to_the_wrapper,
    ],
)
@torch.no_grad()
def test_a_compiled_model_that_has_run_answers_with_the_tasks(share: Share, how: Any) -> None:
    expected, model = right(share), Net()
    run = how(model)
    run(POINTS)  # Compiled without hooks.
    mixed = MixedTasks(run if how is compile_and_attach_to_the_wrapper else model, share)
    with mixed.tasks(TASKS):
        torch.testing.assert_close(run(POINTS), expected)
    torch.testing.assert_close(run(POINTS), Net()(POINTS))
    with mixed.tasks(list(reversed(TASKS))):
        torch.testing.assert_close(run(POINTS.flip(0)), expected.flip(0))


@torch.no_grad()
def test_modules_that_were_replaced_after_attaching(share: Share) -> None:
    expected, model = right(share), Net()
    mixed = MixedTasks(model, share)
    with mixed.tasks(TASKS):
        model(POINTS)
    model.layers[0] = Net().layers[0]
    compile_blocks(model)
    with mixed.tasks(TASKS):
        torch.testing.assert_close(model(POINTS), expected)
    model.layers[1].up = nn.Linear(3, 3)
    with pytest.raises(MismatchError, match=r"layers\.1\.up"), mixed.tasks(TASKS):
        pass


@torch.no_grad()
def test_direct_calls_of_forward(share: Share) -> None:
    model: Any = Net()
    last = model.layers[1]
    last.forward = lambda x: x + last.down.forward(torch.tanh(last.up(x)))
    mixed = MixedTasks(model, share)
    said = r"layers\.1\.down.*without calling"
    with pytest.raises(MismatchError, match=said), mixed.tasks(TASKS):
        model(POINTS)


class Attends(nn.Module):
    """Attention whose output projection is never called: its weight goes to a kernel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = self.attention(x, x, x)[0]
        return out


@torch.no_grad()
def test_a_fused_kernel_that_takes_the_weight() -> None:
    points = torch.randn(2, 3, 8)
    mixed = MixedTasks(Attends().eval(), share_of(Attends(), ["first", "attention.out_proj"]))
    with pytest.raises(MismatchError, match=r"'attention\.out_proj'.*fused"), mixed.tasks(TASKS):
        mixed.model(points)
    only = MixedTasks(Attends().eval(), share_of(Attends(), ["first"]))
    with only.tasks(TASKS):
        only.model(points)


@torch.no_grad()
def test_torchscript_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    share = share_of(model, ["0", "1"])
    traced = torch.jit.trace(model, torch.ones(2, 8))  # type: ignore[no-untyped-call]
    with pytest.raises(MismatchError, match="TorchScript"):
        MixedTasks(traced, share)


@torch.no_grad()
def test_a_model_that_was_captured_before() -> None:
    """As ``torch.cuda.make_graphed_callables`` does: the whole forward is another one."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    share = share_of(model, ["0", "2"])
    copy = deepcopy(model)
    model.forward = copy.forward  # type: ignore[method-assign]
    mixed = MixedTasks(model, share)
    said = r"'a', 'b': none of the 2 modules.*captured"
    with pytest.raises(MismatchError, match=said), mixed.tasks(TASKS):
        model(torch.ones(2, 8))
    exported = torch.export.export(copy, (torch.ones(2, 8),)).module()
    mixed = MixedTasks(copy, share)
    said = r"none of the 2 modules|without calling"
    with pytest.raises(MismatchError, match=said), mixed.tasks(TASKS):
        exported(torch.ones(2, 8))


class Optional(nn.Module):
    """Two towers, of which one runs only where there is something for it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.vision = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        out: Tensor = self.text(x)
        return out if image is None else out + self.vision(image)


@torch.no_grad()
def test_modules_that_need_not_run() -> None:
    x = torch.randn(2, 8)
    for adapted in (["vision.0"], ["vision.0", "text.0"]):
        mixed = MixedTasks(Optional(), share_of(Optional(), adapted))
        for image in (None, x, None):
            with mixed.tasks(TASKS):
                mixed.model(x, image)
        with mixed.tasks(TASKS):
            pass
