"""SubspaceLinear: the layer that learns a task inside the subspace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sharespace.nn import SubspaceLinear
from sharespace.nn.layer import complement

N, D, K = 12, 9, (4, 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def basis(rows: int, columns: int, seed: int = 1) -> Tensor:
    q: Tensor = torch.linalg.qr(torch.randn(rows, columns, generator=generator(seed)))[0]
    return q


def layer(p: int = 2, phi: int = 2, core: Tensor | None = None) -> SubspaceLinear:
    torch.manual_seed(3)
    base = nn.Linear(D, N).requires_grad_(False)
    left, right = basis(N, K[0]), basis(D, K[1])
    return SubspaceLinear(base, left, right, p=p, phi=phi, generator=generator(), core=core)


@pytest.mark.parametrize("phi", [0, 1, 2])
def test_starts_as_the_base_module(phi: int) -> None:
    x = torch.randn(5, 7, D, generator=generator())
    module = layer(phi=phi)
    assert torch.equal(module(x), module.base(x))


@pytest.mark.parametrize("phi", [0, 2])
def test_learns_from_the_zero_start_what_the_subspace_can_hold(phi: int) -> None:
    module = layer(phi=phi)
    core = torch.randn(K[0], 2, generator=generator()) @ torch.randn(2, K[1], generator=generator())
    target = module.left_basis @ core @ module.right_basis.mT
    optimizer = torch.optim.Adam([q for q in module.parameters() if q.requires_grad], lr=0.03)
    for _ in range(400):
        optimizer.zero_grad()
        _difference(module, target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert _difference(module, target) < 1e-3 * target.square().sum()


def _difference(module: SubspaceLinear, target: Tensor) -> Tensor:
    up, down = module.factors()
    return (up @ down.mT - target).square().sum()


def test_all_that_is_trained_gets_a_gradient_after_one_step() -> None:
    module = layer()
    trained = {n: q for n, q in module.named_parameters() if q.requires_grad}
    assert set(trained) == {
        "left_coefficients", "right_coefficients", "left_temporary", "right_temporary"
    }  # fmt: skip
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.randn(8, D, generator=generator())).square().sum().backward()
        optimizer.step()
    assert all(q.grad is not None and q.grad.abs().max() > 0 for q in trained.values())


def test_bases_are_buffers_and_do_not_train() -> None:
    module = layer()
    assert {n for n, _ in module.named_buffers()} == {"left_basis", "right_basis"}


def test_forward_is_base_plus_update() -> None:
    module = layer()
    with torch.no_grad():
        module.left_coefficients.normal_(generator=generator())
    update, x = module.update(), torch.randn(4, D, generator=generator())
    expected = module.base(x) + x @ (update.up @ update.down).mT
    torch.testing.assert_close(module(x), expected)
    assert update.scaling == 1.0
    assert update.up.shape == (N, 2)
    assert update.down.shape == (2, D)


def test_starts_from_a_core() -> None:
    core = torch.randn(*K, generator=generator(), dtype=torch.float64)
    module = layer(p=3, core=core)
    up, down = module.factors()
    expected = module.left_basis.double() @ core @ module.right_basis.double().mT
    torch.testing.assert_close((up @ down.mT).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_core_of_lower_rank_leaves_columns_that_can_still_learn() -> None:
    core = torch.outer(torch.ones(K[0]), torch.ones(K[1]))
    module = layer(p=3, core=core)
    assert module.right_coefficients.norm(dim=0).min() > 0.1
    assert torch.equal(layer(p=3, core=torch.zeros(K)).left_coefficients, torch.zeros(6, 3))


def test_p_and_phi_are_lowered_to_what_there_is_room_for() -> None:
    module = layer(p=99, phi=99)
    assert module.left_temporary.shape == (N, N - K[0])
    assert module.right_temporary.shape == (D, D - K[1])
    assert module.left_coefficients.shape == (N, D)


def test_complement_is_orthonormal_and_orthogonal_to_the_basis() -> None:
    known = basis(40, 7)
    found = complement(known, 5, generator())
    torch.testing.assert_close(found.mT @ found, torch.eye(5, dtype=torch.float64))
    assert (known.double().mT @ found).abs().max() < 1e-12


def test_a_16_bit_base_is_adapted_in_float32() -> None:
    base = nn.Linear(D, N, dtype=torch.bfloat16)
    module = SubspaceLinear(
        base, basis(N, 4), basis(D, 3), p=2, phi=1, generator=generator()
    )  # fmt: skip
    assert module.left_coefficients.dtype == torch.float32
    assert module(torch.randn(2, D, dtype=torch.bfloat16)).dtype == torch.bfloat16
