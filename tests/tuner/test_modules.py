"""Finding modules, and changing weights for a while."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharespace.errors import MismatchError
from sharespace.subspace.adapter import LayerUpdate
from sharespace.tuner import applied


class Conv1D(nn.Module):
    """As in transformers: weight d x n."""

    def __init__(self, n: int, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d, n))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), Conv1D(3, 7), nn.Conv2d(1, 1, 3))


def update(n: int, d: int, scaling: float = 1.0) -> LayerUpdate:
    return LayerUpdate(torch.randn(n, 2), torch.randn(2, d), scaling)


def test_applied_adds_the_updates_and_takes_them_back_bit_for_bit() -> None:
    net, x = model(), torch.randn(4, 5)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first, second = update(7, 5, 0.5), update(3, 7)
    head = torch.zeros(7)
    with torch.no_grad(), applied(net, {"0": first, "1": second}, {"0.bias": head}):
        got = net[1](net[0](x))
    w = before["0.weight"] + 0.5 * first.up @ first.down
    v = before["1.weight"] + (second.up @ second.down).mT
    torch.testing.assert_close(got, (x @ w.mT) @ v)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_applied_takes_back_after_an_error_too() -> None:
    net = model()
    before = net[0].weight.detach().clone()
    with pytest.raises(ZeroDivisionError), applied(net, {"0": update(7, 5)}):
        raise ZeroDivisionError
    assert torch.equal(net[0].weight, before)


def test_applied_changes_nothing_where_an_update_does_not_fit() -> None:
    net = model()
    before = net[0].weight.detach().clone()
    with (
        pytest.raises(MismatchError, match=r"'1'.*Conv1D"),
        applied(net, {"0": update(7, 5), "1": update(7, 3)}),
    ):
        pass
    assert torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    ("name", "sides", "message"),
    [("7", (7, 5), "not in this model"), ("0", (5, 7), r"Linear of \(7, 5\)")],
)
def test_modules_that_do_not_fit_are_named(name: str, sides: tuple[int, int], message: str) -> None:
    with pytest.raises(MismatchError, match=message), applied(model(), {name: update(*sides)}):
        pass


def test_a_convolution_is_changed_as_a_flattened_matrix() -> None:
    net, x = model(), torch.randn(1, 1, 3, 3)
    before, new = net[2](x), update(1, 9)
    with torch.no_grad(), applied(net, {"2": new}):
        got = net[2](x)
    torch.testing.assert_close(got, before + (new.up @ new.down) @ x.reshape(9, 1)[None, None])
