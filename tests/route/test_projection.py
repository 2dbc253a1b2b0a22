"""Energy: the definitions, by hand; hooks that come and go."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor, nn

from sharespace import Share
from sharespace.errors import MismatchError, OptionError
from sharespace.route import directions, energy, route_by_energy
from sharespace.subspace.adapter import Adapter, LayerUpdate

N, D = 5, 6


class _Net(nn.Module):
    """One linear module whose inputs are the network's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, N)
        self.unused = nn.Linear(D, N)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        out: Tensor = self.inner(x)
        return out


def _update(rank: int = 2, seed: int = 0) -> LayerUpdate:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(N, rank, generator=generator)
    return LayerUpdate(up, torch.randn(rank, D, generator=generator), 0.5)


def _by_hand(update: LayerUpdate, x: Tensor, definition: str) -> Tensor:
    _, s, vh = torch.linalg.svd(update.scaling * update.up @ update.down)
    s, v = s[:2], vh[:2].mT
    if definition == "arrow":
        inside = (x @ v[:, 0]).square().sum(dim=1)
    elif definition == "projection":
        inside = (x @ v).square().sum(dim=(1, 2))
    else:
        inside = (x @ v * s / s[0]).square().sum(dim=(1, 2))
    share: Tensor = inside / x.square().sum(dim=(1, 2))
    return share


@pytest.mark.parametrize("definition", ["projection", "arrow", "update"])
def test_is_what_the_formula_says(definition: str) -> None:
    x = torch.randn(7, 3, D, generator=torch.Generator().manual_seed(1))
    tasks = {
        str(i): directions({"inner": _update(seed=i)}, definition)  # type: ignore[arg-type]
        for i in range(3)
    }
    found = energy(_Net(), [{"x": x[:4]}, {"x": x[4:]}], tasks)
    expected = [_by_hand(_update(seed=i), x, definition) for i in range(3)]
    assert torch.allclose(found, torch.stack(expected, dim=1).double(), atol=1e-5)
    assert bool(((found >= 0) & (found <= 1 + 1e-6)).all())


def test_the_split_between_the_factors_and_their_scale_do_not_matter() -> None:
    x = torch.randn(4, 3, D)
    plain = _update()
    mixed = torch.tensor([[1.0, 0.5], [0.2, 2.0]])
    other = LayerUpdate(plain.up @ mixed, 100 * torch.linalg.inv(mixed) @ plain.down, 3.0)
    for definition in ("projection", "arrow", "update"):
        pair = {
            "a": directions({"inner": plain}, definition),
            "b": directions({"inner": other}, definition),
        }
        found = energy(_Net(), [{"x": x}], pair)
        assert torch.allclose(found[:, 0], found[:, 1], atol=1e-5)


def test_padding_does_not_count_and_no_hook_stays() -> None:
    net = _Net()
    x = torch.randn(2, 4, D)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]])
    tasks = {"a": directions({"inner": _update()}, "projection")}
    padded = energy(net, [{"x": x, "attention_mask": mask}], tasks)
    assert torch.allclose(padded, energy(net, [{"x": x[:, :2]}], tasks))
    assert not net.inner._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_peft_model_gives_what_its_base_gives() -> None:
    net, x = _Net().eval(), torch.randn(2, 3, D)
    tasks = {"a": directions({"inner": _update()})}
    plain = energy(net, [{"x": x}], tasks)
    config = peft.LoraConfig(r=2, target_modules=["inner"], init_lora_weights=False)
    adapted = peft.PeftModel(net, config)
    assert torch.equal(energy(adapted, [{"x": x}], tasks), plain)


def test_tasks_of_a_share_model_find_the_inputs_that_lie_in_them() -> None:
    own = [torch.eye(D)[:, 2 * i : 2 * i + 2] for i in range(3)]
    adapters = [
        Adapter.from_updates(str(i), {"inner": LayerUpdate(torch.randn(N, 2), q.mT.contiguous())})
        for i, q in enumerate(own)
    ]
    share = Share.from_adapters(adapters, k=D)
    tasks = {name: directions(share.updates(name), "projection") for name in share.tasks}
    x = torch.stack([(own[i] @ torch.randn(2, 3)).mT for i in (2, 0, 1)])
    found = energy(_Net(), [{"x": x + 0.05 * torch.randn(3, 3, D)}], tasks)
    assert route_by_energy(found, list(tasks)).tasks == ("2", "0", "1")
    assert route_by_energy(found, list(tasks), margin=0.999).tasks == (None, None, None)


def test_a_zero_update_has_no_directions() -> None:
    zero = LayerUpdate(torch.zeros(N, 2), torch.ones(2, D))
    assert directions({"inner": zero}) == {}
    with pytest.raises(OptionError, match=r"task 'a'.*no directions"):
        energy(_Net(), [{"x": torch.ones(1, 1, D)}], {"a": {}})


def test_what_does_not_fit_is_refused() -> None:
    x = torch.ones(1, 1, D)
    found = directions({"inner": _update()})
    with pytest.raises(OptionError, match="'cosine'"):
        directions({"inner": _update()}, "cosine")  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="not in the model"):
        energy(_Net(), [{"x": x}], {"a": {"outer": found["inner"]}})
    with pytest.raises(MismatchError, match="not run"):
        energy(_Net(), [{"x": x}], {"a": {"unused": found["inner"]}})
    with pytest.raises(MismatchError, match="inputs"):
        energy(_Net(), [{"x": x}], {"a": {"inner": torch.ones(3, 1)}})
    with pytest.raises(OptionError, match="batches"):
        energy(_Net(), [], {"a": found})
    with pytest.raises(MismatchError, match="2 tasks"):
        route_by_energy(torch.ones(4, 3), ["a", "b"])
