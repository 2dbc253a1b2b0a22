"""Samples of base weights: one model in any dtype is itself, and no other model is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sharespace.errors import CorruptStoreError, MismatchError
from sharespace.linalg.dimension import Dimension
from sharespace.store import Operation, checkout, commit, load, prune, rename, rollback, verify
from sharespace.subspace.adapter import Adapter, LayerUpdate
from sharespace.subspace.base_weights import same_base, sampled_rows
from sharespace.subspace.build import initialise
from sharespace.subspace.merge import merge, union

ROWS, COLUMNS = st.integers(1, 40), st.integers(1, 80)


def weight(n: int, d: int, seed: int = 0, scale: float = 0.02) -> Tensor:
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@given(n=ROWS, d=COLUMNS, seed=st.integers(0, 99), scale=st.sampled_from([1e-4, 0.02, 1.0, 300.0]))
def test_a_base_in_any_dtype_is_the_same(n: int, d: int, seed: int, scale: float) -> None:
    exact = weight(n, d, seed, scale)
    samples = [sampled_rows(exact.to(t)) for t in (torch.float32, torch.bfloat16, torch.float16)]
    assert samples[0].shape == (min(n, 8), min(d, 16))
    assert all(same_base(a, b) for a in samples for b in samples)


@given(n=ROWS, d=COLUMNS, seed=st.integers(0, 99))
def test_another_base_is_another(n: int, d: int, seed: int) -> None:
    first = weight(n, d, seed)
    assert not same_base(sampled_rows(first), sampled_rows(weight(n, d, seed + 1000)))
    # Trained further: every value moved by a few hundredths of itself, and stored in bfloat16.
    moved = first * (1 + 0.1 * torch.rand(n, d, generator=torch.Generator().manual_seed(seed)))
    if n * d >= 16:
        assert not same_base(sampled_rows(first), sampled_rows(moved.bfloat16()))


def adapter(name: str, *modules: str, base_seed: int | None = None) -> Adapter:
    """Of modules of 12 x 20; ``base_seed``: the base weights were at hand."""
    updates = {
        m: LayerUpdate(weight(12, 2, 5 + i, 1.0), weight(2, 20, 9 + len(name) + i, 1.0))
        for i, m in enumerate(modules)
    }
    samples = (
        {m: sampled_rows(weight(12, 20, base_seed + len(m))) for m in modules}
        if (base_seed is not None)
        else {}
    )
    return replace(Adapter.from_updates(name, updates), base_samples=samples)


def test_pinned_at_the_first_contact_and_checked_afterwards(tmp_path: Path) -> None:
    model = initialise([adapter("a", "q")], Dimension(variance=1.0))
    assert not model.base_samples
    first = commit(tmp_path / "s", model, operation=Operation("init"), expected_parent=None)
    assert checkout(tmp_path / "s").manifest.content.schema_version == 1
    model = merge(load(tmp_path / "s"), [adapter("bb", "q", "vv", base_seed=1)])
    assert list(model.base_samples) == ["q", "vv"]
    commit(tmp_path / "s", model, operation=Operation("merge"), expected_parent=first)
    stored = load(tmp_path / "s")
    with pytest.raises(MismatchError, match="module 'q' has other weights"):
        merge(stored, [adapter("ccc", "q", base_seed=2)])
    again = merge(
        stored, [adapter("ccc", "q", base_seed=1), adapter("dddd", "q", "new", base_seed=1)]
    )
    assert list(again.base_samples) == ["q", "vv", "new"]
    other = initialise([adapter("ccc", "q", base_seed=2)], Dimension(variance=1.0))
    with pytest.raises(MismatchError, match="the second Share model: module 'q'"):
        union(stored, other)
    with pytest.raises(MismatchError, match="adapter 'bb': module 'q'"):
        initialise(
            [adapter("a", "q", base_seed=1), adapter("bb", "q", base_seed=2)], Dimension(k=2)
        )


def test_every_verb_carries_it_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    model = initialise([adapter("a", "q", base_seed=1)], Dimension(variance=1.0))
    commit(path, model, operation=Operation("init"), expected_parent=None)
    rename(path, "a", "b")
    rollback(path, 1)
    prune(path, keep=1)
    assert verify(path).ok
    content = checkout(path).manifest.content
    assert content.base_samples is not None
    assert torch.equal(load(path).base_samples["q"], model.base_samples["q"])
    (path / content.base_samples.file).unlink()
    assert [f.status for f in verify(path).damaged] == ["missing"]
    with pytest.raises(CorruptStoreError, match="missing"):
        rollback(path, 3)
