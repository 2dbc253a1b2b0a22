"""Coefficients fitted to an adapter's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from builders import gauss, law
from learn.nets import adapter, net, shared, snapshot, unchanged
from sharespace import Share
from sharespace.errors import MismatchError, OptionError, TaskNotFoundError
from sharespace.learn import calibrate
from sharespace.learn.calibrate import Moments, reduced_rank
from sharespace.subspace.adapter import Adapter, LayerUpdate, ModuleShape
from sharespace.subspace.coefficients import Factors, PerTask

Batches = Iterable[Mapping[str, Tensor]]


def batches(count: int = 4, seed: int = 0, scale: float = 1.0) -> list[dict[str, Tensor]]:
    decay = scale * 0.6 ** torch.arange(10)
    return [{"x": (gauss(seed + i, 16, 10) * decay).float()} for i in range(count)]


def output_error(model: nn.Module, share: Share, original: Adapter, inputs: Batches) -> float:
    """By the definition: what each module makes of what it is given in the adapted model."""
    squares = [0.0, 0.0]
    kept = share.updates(original.name)

    def look(name: str) -> None:
        wanted, found = (u.scaling * u.up.double() @ u.down.double()
                         for u in (original.layer(name), kept[name]))  # fmt: skip

        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0].double()
            squares[0] += float((x @ (wanted - found).mT).square().sum())
            squares[1] += float((x @ wanted.mT).square().sum())
            return output + (x @ wanted.mT).float()

        handles.append(model.get_submodule(name).register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for module in original.shapes:
        look(module)
    with torch.no_grad():
        for batch in inputs:
            model(**batch)
    for handle in handles:
        handle.remove()
    return float((squares[0] / squares[1]) ** 0.5)


@law(8)
@given(
    k=st.integers(1, 8),
    ridge=st.sampled_from([1e-9, 1e-3, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 100),
    p=st.sampled_from([None, 1, 2]),
)
def test_the_outputs_error_never_grows(
    k: int, ridge: float, dtype: torch.dtype, seed: int, p: int | None
) -> None:
    original = adapter("a", seed, 3)
    share = Share.from_adapters([original, adapter("b", seed + 1, 3)], k=k, dtype=dtype, p=p)
    inputs = batches(seed=seed)
    found = calibrate(net(), share, original, inputs, ridge=ridge)
    assert found.after <= found.before
    assert found.before == pytest.approx(output_error(net(), share, original, inputs), abs=1e-4)
    assert found.after == pytest.approx(
        output_error(net(), found.share, original, inputs), abs=1e-4
    )
    task = found.share.task("a")
    ledger, errors = task.ledger, found.share.fidelity(against=original).tasks["a"]
    assert errors.relative_error <= ledger.bound * (1 + 1e-5) + 1e-6
    for module, value in share.task("a").coefficients.items():
        after = task.coefficients[module]
        assert type(after) is type(value)
        if isinstance(value, Factors) and isinstance(after, Factors):
            assert after.rank == value.rank


def test_it_helps_where_inputs_have_a_shape() -> None:
    original = adapter("a", 1, 4)
    share = Share.from_adapters([original, adapter("b", 2, 4)], k=3)
    found = calibrate(net(), share, original, batches(20))
    assert found.after < 0.95 * found.before
    fresh = batches(20, seed=1000)
    assert output_error(net(), found.share, original, fresh) < 0.95 * output_error(
        net(), share, original, fresh
    )


def spoiled(share: Share, name: str) -> Share:
    """The task with coefficients that have nothing to do with it."""
    pairs = {
        m: (gauss(1, layer.k[0], 2).float(), gauss(2, layer.k[1], 2).float())
        for m, layer in share.model.layers.items()
    }
    return share.retrained(name, pairs, {})


def test_exact_where_the_subspace_can_hold_it() -> None:
    original = adapter("a", 1)
    share = Share.from_adapters([original, adapter("b", 2)], variance=1.0)
    wrong = spoiled(share, "a")
    found = calibrate(net(), wrong, original, batches(8), ridge=1e-9)
    assert found.before > 0.5
    assert found.after < 1e-4
    # And with it the update itself, as the inputs have every direction.
    assert found.share.fidelity(against=original).tasks["a"].relative_error < 1e-3


def test_directions_that_no_input_has_stay_where_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False))
    original = Adapter.from_updates(
        "a", {"0": LayerUpdate(gauss(1, 5, 4).float(), gauss(2, 4, 6).float())}
    )
    share = Share.from_adapters(original, k=4)
    wrong = share.retrained("a", {"0": (gauss(5, 4, 4).float(), gauss(6, 4, 4).float())}, {})
    x = gauss(3, 50, 6).float()
    x[:, 3:] = 0
    found = calibrate(model, wrong, original, [{"input": x}], ridge=1e-6).share
    before, after = (s.updates("a")["0"] for s in (wrong, found))
    change = after.up @ after.down - before.up @ before.down
    right = share.model.layers["0"].right_basis
    unseen = torch.linalg.svd((x @ right).double())[2][3:].float()
    assert len(unseen) == right.shape[1] - 3
    assert float((change @ right @ unseen.mT).norm()) < 1e-3 * float(change.norm())


def test_a_fit_of_low_rank_is_the_best_of_that_rank() -> None:
    """No small step within the rank does better."""
    k, p, n = 5, 2, 200
    z, wanted = gauss(1, n, k), gauss(2, k, k)
    y = z @ wanted.mT
    moments = Moments(torch.eye(k).double(), z.mT @ z, y.mT @ z, float(y.square().sum()), n)
    best = reduced_rank(moments, torch.zeros(k, k).double(), p, 1e-12)
    assert torch.linalg.matrix_rank(best, rtol=1e-8) == p
    least = moments.squared_error(best)
    u, s, vh = torch.linalg.svd(best)
    left, right = u[:, :p] * s[:p], vh[:p]
    for seed in range(20):
        for size in (1e-1, 1e-2):
            other = (left + size * gauss(seed, k, p)) @ (right + size * gauss(seed + 50, p, k))
            assert moments.squared_error(other) >= least


class Mixed(nn.Module):
    """A convolution, a grouped one, Conv1D and a linear module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect", stride=2)
        self.point = nn.Conv2d(4, 4, 1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.gpt2, self.linear = Conv1D(6, 16), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.grouped(torch.relu(self.point(torch.relu(self.conv(x)))))
        found: Tensor = self.linear(torch.tanh(self.gpt2(h.flatten(1))))
        return found


SIDES = {"conv": (4, 18), "point": (4, 4), "grouped": (4, 18), "gpt2": (6, 16), "linear": (5, 6)}


def mixed_adapter(name: str, seed: int) -> Adapter:
    kernels = {"conv": (3, 3), "point": (1, 1), "grouped": (3, 3)}
    updates = {
        m: LayerUpdate(gauss(seed + i, n, 2).float(), gauss(seed + i + 50, 2, d).float(), 0.5)
        for i, (m, (n, d)) in enumerate(SIDES.items())
    }
    shapes = {m: ModuleShape(*SIDES[m], "conv", kernel) for m, kernel in kernels.items()}
    return Adapter.from_updates(name, updates, shapes=shapes)


def test_convolutions_and_conv1d_are_fitted() -> None:
    torch.manual_seed(0)
    model, original = Mixed(), mixed_adapter("a", 1)
    before = snapshot(model)
    share = spoiled(Share.from_adapters([original, mixed_adapter("b", 500)], variance=1.0), "a")
    inputs = [{"x": gauss(i, 16, 2, 4, 4).float()} for i in range(4)]
    found = calibrate(model, share, original, inputs, ridge=1e-9)
    assert found.after < 1e-3 < 0.5 < found.before
    errors = found.share.fidelity(against=original).tasks["a"].layers
    for module in SIDES:
        if module == "grouped":
            assert errors[module].relative_error > 0.5
        else:
            assert errors[module].relative_error < 1e-2, module
    assert unchanged(model, before)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.linear(x)
        return found if attention_mask is None else found * attention_mask[..., None]


def test_padding_counts_for_nothing() -> None:
    original, other = (
        Adapter.from_updates(
            name, {"linear": LayerUpdate(gauss(s, 5, 4).float(), gauss(s + 1, 4, 6).float())}
        )
        for name, s in (("a", 1), ("b", 3))
    )
    share = Share.from_adapters([original, other], k=2)
    x = (gauss(3, 4, 7, 6) * 0.5 ** torch.arange(6)).float()
    mask = torch.ones(4, 7, dtype=torch.long)
    mask[:, 5:] = 0
    padded = x.clone()
    padded[:, 5:] = 1e3
    model = Tokens()
    short = calibrate(model, share, original, [{"x": x[:, :5]}])
    found = calibrate(model, share, original, [{"x": padded, "attention_mask": mask}])
    assert short.after < 0.95 * short.before
    assert found.after == pytest.approx(short.after, rel=1e-4)
    assert found.before == pytest.approx(short.before, rel=1e-4)


def test_nothing_else_changes_and_the_task_is_still_its_adapter() -> None:
    share, original, model = shared(), adapter("a", 1, scale=0.1), net()
    before = snapshot(model)
    model.train()
    found = calibrate(model, share, original, batches()).share
    assert model.training
    assert unchanged(model, before)
    assert found.model.layers["first"] is share.model.layers["first"]
    assert found.task("b") is share.task("b")
    ledger = found.task("a").ledger
    assert ledger.events == ("init", "calibrate")
    assert ledger.segment_start == 0
    assert ledger.bound >= share.task("a").ledger.bound


def test_private_updates_and_modules_without_inputs_stay() -> None:
    original = adapter("a", 1)
    share = spoiled(shared(), "a")
    task = share.task("a")
    own = PerTask(torch.ones(14, 1), torch.ones(10, 1))
    mixed = replace(task, coefficients={**task.coefficients, "first": own})
    share = Share(share.model.with_tasks([mixed, share.task("b")]))
    found = calibrate(net(), share, original, batches()).share
    assert found.task("a").coefficients["first"] is own
    assert found.task("a").coefficients["second"] is not task.coefficients["second"]


def test_what_is_wrong_is_named() -> None:
    share, original = shared(), adapter("a", 1)
    with pytest.raises(TaskNotFoundError):
        calibrate(net(), share, original.with_name("c"), batches())
    with pytest.raises(OptionError, match="inputs"):
        calibrate(net(), share, original, [])
    for ridge in (0.0, -1.0, float("nan")):
        with pytest.raises(OptionError, match="ridge"):
            calibrate(net(), share, original, batches(), ridge=ridge)
    with pytest.raises(OptionError, match="NaN"):
        calibrate(net(), share, original, [{"x": torch.full((2, 10), torch.nan)}])
    with pytest.raises(MismatchError, match="15x10"):
        calibrate(net(hidden=15), share, original, batches())
    nothing = Adapter.from_updates("a", {}, base=original.base)
    with pytest.raises(MismatchError, match="no module"):
        calibrate(net(), share, nothing, batches())
    assert calibrate(net(), share, original, [{"x": torch.zeros(2, 10)}]).before >= 0
