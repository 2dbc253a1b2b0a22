"""Size claims: the paper's figures, the stored model, and where a ratio is reached."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import adapter, build, law, update
from sharespace.compare.size import CountedBy, SizeLayout, bytes_on_disk, claims, reach, size
from sharespace.errors import OptionError
from sharespace.subspace.adapter import ModuleShape
from sharespace.subspace.fidelity import sizes

ROBERTA = SizeLayout((ModuleShape(768, 768),) * 24, k=32, p=8, rank=32)
"""Query and value of 12 layers, as in the paper."""
COUNTED = st.sampled_from(["paper", "bytes"])


@st.composite
def layouts(draw: st.DrawFn) -> SizeLayout:
    side = st.integers(1, 64)
    shapes = draw(st.lists(st.builds(ModuleShape, side, side), min_size=1, max_size=4))
    small, tiny = st.integers(1, 16), st.integers(0, 40)
    parts = [draw(x) for x in (small, small, small, st.sampled_from([2, 4]), tiny, tiny, tiny)]
    return SizeLayout(tuple(shapes), *parts)


def test_the_papers_own_figures() -> None:
    """docs/method.md, "Honest size"."""
    assert ROBERTA.trained == 12_288
    assert ROBERTA.lora == 1_179_648
    six = size(ROBERTA, 6, "paper")
    assert six.share == 6 * 12_288 * 4 == 294_912
    assert six.ratio == pytest.approx(96.0)
    of_rank_8 = replace(ROBERTA, rank=8)
    assert size(of_rank_8, 6, "paper").ratio == pytest.approx(24.0)
    assert of_rank_8.basis * 4 == 4_718_592
    assert size(of_rank_8, 6, "bytes").ratio == pytest.approx(1.4, abs=0.02)


@pytest.mark.parametrize("p", [2, 4, 6], ids=["factors", "more than a core", "a core"])
def test_a_layout_is_what_a_model_of_such_tasks_stores(p: int) -> None:
    made = [
        adapter(f"t{i}", {"a": update(30, 20, 6, i), "b": update(16, 40, 6, 50 + i)})
        for i in (0, 1, 2)
    ]
    found = sizes(build(made, 6, p=p))
    layout = SizeLayout((ModuleShape(30, 20), ModuleShape(16, 40)), k=6, p=p, rank=6)
    assert found.basis == 4 * layout.basis
    assert found.coefficients == 3 * 4 * layout.coefficients
    assert found.adapters == size(layout, 3, "bytes").lora


def test_cores_are_stored_where_they_are_smaller_but_factors_are_trained() -> None:
    layout = SizeLayout((ModuleShape(30, 20),), k=4, p=4, rank=4)
    assert layout.coefficients == 16
    assert layout.trained == 32


def test_a_module_takes_no_more_directions_than_it_has() -> None:
    layout = SizeLayout((ModuleShape(3, 50),), k=10, p=8, rank=2)
    assert layout.basis == 3 * 3 + 10 * 50
    assert layout.trained == (3 + 10) * 3
    assert layout.coefficients == 3 * 10


def test_heads_and_files_count_in_the_bytes_only() -> None:
    plain = SizeLayout((ModuleShape(8, 8),), k=2, p=1, rank=1)
    full = replace(plain, head=10, share_overhead=100, lora_overhead=7)
    assert size(full, 3, "paper") == size(plain, 3, "paper")
    assert size(full, 3, "bytes").share - size(plain, 3, "bytes").share == 3 * (40 + 100)
    assert size(full, 3, "bytes").lora - size(plain, 3, "bytes").lora == 3 * (40 + 7)


def test_claims_stand_side_by_side() -> None:
    found = claims(ROBERTA)
    assert [c.total.tasks for c in found] == [6, 100, 1000]
    assert all(c.paper == size(ROBERTA, c.paper.tasks, "paper") for c in found)
    assert all(c.total.ratio < c.paper.ratio for c in found)


def test_a_hundred_times_is_never_reached_by_the_papers_own_setting() -> None:
    assert reach(ROBERTA, 100, "paper").tasks is None
    found = reach(ROBERTA, 100, "bytes")
    assert found.tasks is None
    assert found.limit == pytest.approx(96.0)
    # 50 x: T (1179648 - 50 * 12288) >= 50 * 1179648
    assert reach(ROBERTA, 50, "bytes").tasks == 105


@law(100)
@given(layouts(), st.floats(0.01, 200), COUNTED)
def test_reach_is_the_first_number_of_tasks(
    layout: SizeLayout, ratio: float, counted: CountedBy
) -> None:
    found = reach(layout, ratio, counted)
    if found.tasks is None:
        assert size(layout, 10**7, counted).ratio < ratio
        assert ratio >= found.limit * (1 - 1e-9)
        return
    assert size(layout, found.tasks, counted).ratio >= ratio * (1 - 1e-12)
    if found.tasks > 1:
        assert size(layout, found.tasks - 1, counted).ratio < ratio * (1 + 1e-12)


@law()
@given(layouts(), st.integers(1, 500))
def test_the_ratio_grows_towards_its_limit(layout: SizeLayout, tasks: int) -> None:
    limit = reach(layout, 1, "bytes").limit
    now, then = size(layout, tasks, "bytes").ratio, size(layout, 2 * tasks, "bytes").ratio
    assert now < then <= limit


@pytest.mark.parametrize("name", ["k", "p", "rank", "itemsize", "head", "lora_overhead"])
def test_numbers_without_use_are_refused(name: str) -> None:
    changed: Any = {name: -1}
    with pytest.raises(OptionError, match=name):
        replace(ROBERTA, **changed)


def test_no_modules_no_tasks_and_no_ratio_are_refused() -> None:
    with pytest.raises(OptionError, match="no adapted module"):
        replace(ROBERTA, shapes=())
    with pytest.raises(OptionError, match="at least 1"):
        size(ROBERTA, 0, "bytes")
    for ratio in (0, -1, float("nan"), float("inf")):
        with pytest.raises(OptionError, match="positive number"):
            reach(ROBERTA, ratio, "bytes")


def test_bytes_on_disk_counts_every_file_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "one").write_bytes(b"12345")
    (tmp_path / "deep" / "two").write_bytes(b"123")
    os.link(tmp_path / "one", tmp_path / "deep" / "same")
    assert bytes_on_disk(tmp_path) == 8
    assert bytes_on_disk(tmp_path / "one") == 5
    with pytest.raises(OptionError, match="nothing there"):
        bytes_on_disk(tmp_path / "three")
