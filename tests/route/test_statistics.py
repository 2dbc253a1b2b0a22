"""Statistics: pieces in any order and size give what one pass gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharespace.errors import MismatchError, OptionError
from sharespace.route import Statistics


def _features(inputs: int, d: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(inputs, d, generator=generator, dtype=torch.float64)


def _close(one: Statistics, other: Statistics) -> bool:
    return (
        one.count == other.count
        and torch.allclose(one.mean, other.mean, rtol=1e-12, atol=1e-12)
        and torch.allclose(one.scatter, other.scatter, rtol=1e-10, atol=1e-10)
    )


def test_are_the_count_the_mean_and_the_sum_of_squares_about_it() -> None:
    x = _features(40)
    found = Statistics.from_features(x)
    assert found.count == 40
    assert torch.allclose(found.mean, x.mean(dim=0))
    assert torch.allclose(found.scatter / 39, torch.cov(x.mT))
    assert torch.equal(found.scatter, found.scatter.mT)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.randoms())
def test_pieces_in_any_order_give_the_whole(sizes: list[int], random: object) -> None:
    pieces = list(torch.split(_features(sum(sizes)), sizes))
    whole = Statistics.from_features(torch.cat(pieces))
    random.shuffle(pieces)  # type: ignore[attr-defined]
    first, *rest = map(Statistics.from_features, pieces)
    for piece in rest:
        first = first.add(piece)
    assert _close(first, whole)


def test_an_offset_far_from_zero_does_not_cancel() -> None:
    x = _features(50)
    far = Statistics.from_features(x[:20] + 1e7).add(Statistics.from_features(x[20:] + 1e7))
    near = Statistics.from_features(x)
    assert torch.allclose(far.scatter, near.scatter, rtol=1e-5)


def test_float16_features_are_summed_in_float64() -> None:
    x = _features(1000).half()
    assert torch.allclose(Statistics.from_features(x).mean, x.double().mean(dim=0))


@pytest.mark.parametrize(
    "bad", [torch.zeros(0, 3), torch.zeros(3), torch.zeros(2, 0), torch.tensor([[1.0, torch.nan]])]
)
def test_unusable_features_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(OptionError, match="features"):
        Statistics.from_features(bad)


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(OptionError, match="from_features"):
        Statistics(1, torch.zeros(3), torch.zeros(3, 3))
    with pytest.raises(OptionError, match="scatter"):
        Statistics(1, torch.zeros(3).double(), torch.zeros(2, 2).double())


def test_other_dimensions_are_refused() -> None:
    with pytest.raises(MismatchError, match="dimension 4"):
        Statistics.from_features(_features(3)).add(Statistics.from_features(_features(3, 4)))
