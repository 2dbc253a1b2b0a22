"""Attach, train, collect, merge, detach."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

from learn.nets import Net, adapter, net
from sharespace import Share
from sharespace.errors import MismatchError, OptionError
from sharespace.learn import Attached, attach, collect, detach
from sharespace.learn.adapt import Start
from sharespace.nn import applied
from sharespace.subspace.state import ShareModel


def share(k: int | None = 4) -> Share:
    known = [adapter("a", 1), adapter("b", 2)]
    return Share.from_adapters(known, k=k) if k else Share.from_adapters(known, variance=1.0)


def trained(model: Net, share_model: ShareModel, phi: int = 1, start: Start = "zero") -> Attached:
    """Attached, and moved away from the start by a few large steps."""
    handle = attach(model, share_model, p=2, phi=phi, seed=5, start=start)
    optimizer = torch.optim.SGD([q for q in model.parameters() if q.requires_grad], lr=0.5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        optimizer.zero_grad()
        x, labels = torch.randn(32, 10, generator=generator), torch.arange(32) % 3
        model(x, labels)["loss"].backward()
        optimizer.step()
    return handle


X = torch.randn(16, 10, generator=torch.Generator().manual_seed(9))


def test_attach_does_not_change_the_output() -> None:
    model = net()
    before = model(X)["logits"]
    attach(model, share().model, p=2, phi=1)
    assert torch.equal(model(X)["logits"], before)


def test_only_the_layers_and_the_head_are_trained() -> None:
    model = net()
    handle = attach(model, share().model, p=2, phi=1)
    numbers = sum(n + d + 2 * (4 + 1) * 2 for n, d in ((14, 10), (12, 14)))
    assert handle.trainable == numbers + 12 * 3 + 3
    names = {name.split(".")[-1] for name, q in model.named_parameters() if q.requires_grad}
    assert "left_basis" not in names
    assert not any(q.requires_grad for q in handle.layers["first"].base.parameters())


def test_detach_restores_the_model_bit_for_bit() -> None:
    model = net().eval()
    model.first.bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = {name: id(q) for name, q in model.named_parameters()}
    handle = trained(model, share().model)
    model.train()
    assert detach(handle) is model
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: id(q) for name, q in model.named_parameters()} == parameters
    assert {name for name, q in model.named_parameters() if not q.requires_grad} == {"first.bias"}
    assert not model.training


@pytest.mark.parametrize("phi", [0, 1, 2])
@pytest.mark.parametrize("start", ["zero", "mean"])
def test_the_merged_task_is_the_trained_one_where_the_cap_has_room(phi: int, start: Start) -> None:
    known = share(k=None)  # no cap: grows as needed
    model = net()
    handle = trained(model, known.model, phi, start)
    expected = model(X)["logits"].detach()
    learned = collect(handle, "new")
    detach(handle)
    merged = known.merge(learned)
    head = {k.removeprefix("base_model.model."): v for k, v in merged.task("new").kept.items()}
    with torch.no_grad(), applied(model, merged.updates("new"), head):
        torch.testing.assert_close(model(X)["logits"], expected, rtol=1e-4, atol=1e-5)


def test_the_temporary_directions_are_in_the_merged_subspace() -> None:
    known, model = share(k=None), net()
    handle = trained(model, known.model, phi=2)
    merged = known.merge(collect(handle, "new")).model.layers["first"]
    k_left, k_right = known.model.layers["first"].k
    assert merged.k == (k_left + 2, k_right + 2)
    direction = handle.layers["first"].left_temporary.detach()
    inside = merged.left_basis @ (merged.left_basis.mT @ direction)
    torch.testing.assert_close(inside, direction, rtol=0, atol=2e-5)


def test_without_temporary_directions_old_tasks_do_not_move() -> None:
    known, model = share(), net()
    merged = known.merge(collect(trained(model, known.model, phi=0), "new"))
    for name in known.tasks:
        for module, update in known.updates(name).items():
            assert torch.equal(update.up, merged.updates(name)[module].up)
            assert torch.equal(update.down, merged.updates(name)[module].down)


def test_learning_leaves_the_share_model_alone() -> None:
    known = share()
    before = {m: layer.left_basis.clone() for m, layer in known.model.layers.items()}
    trained(net(), known.model)
    assert all(torch.equal(known.model.layers[m].left_basis, t) for m, t in before.items())


def test_mean_start_is_the_mean_adapter() -> None:
    known = share(k=None)
    handle = attach(net(), known.model, p=4, phi=1, start="mean")
    tasks = [known.updates(name)["second"] for name in known.tasks]
    mean = sum(u.up @ u.down for u in tasks) / len(tasks)
    update = handle.layers["second"].update()
    torch.testing.assert_close(update.up @ update.down, mean, rtol=1e-4, atol=1e-4)


def test_one_seed_gives_one_start() -> None:
    def start(seed: int) -> torch.Tensor:
        handle = attach(net(), share().model, p=2, phi=1, seed=seed)
        return handle.layers["first"].right_coefficients.detach()

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_a_learned_task_is_exported_with_its_head_to_peft(tmp_path: Path) -> None:
    known, model = share(k=None), net()
    handle = trained(model, known.model)
    expected = model(X)["logits"].detach()
    detach(handle)
    merged = known.merge(collect(handle, "new", {"task_type": None}))
    merged.export("new", tmp_path / "new")
    loaded = peft.PeftModel.from_pretrained(net(), tmp_path / "new")
    with torch.no_grad():
        torch.testing.assert_close(loaded(X)["logits"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0, "phi": 1}, "p=0"),
        ({"p": 1, "phi": -1}, "phi=-1"),
        ({"p": 1, "phi": 1, "start": "best"}, "start='best'"),
        ({"p": 1, "phi": 1, "heads": ["first"]}, "in the subspace"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        attach(net(), share().model, **options)  # type: ignore[arg-type]


def test_a_wrong_model_is_refused_and_left_alone() -> None:
    model = net()
    model.second = torch.nn.Linear(14, 11)
    with pytest.raises(MismatchError, match="second"):
        attach(model, share().model, p=2, phi=1)
    assert isinstance(model.first, torch.nn.Linear)
    assert all(q.requires_grad for q in model.parameters())
    with pytest.raises(MismatchError, match="score"):
        attach(net(), share().model, p=2, phi=1, heads=["score"])


def test_attaching_twice_is_refused() -> None:
    model = net()
    attach(model, share().model, p=2, phi=1)
    with pytest.raises(MismatchError, match="SubspaceLinear"):
        attach(model, share().model, p=2, phi=1)
