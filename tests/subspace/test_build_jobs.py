"""What travels is one layer's part, and it gives the same bits as the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import DTYPES, Family, adapter, build, families, law, strangers, update
from sharespace import Share, read_adapter
from sharespace.errors import CorruptAdapterError
from sharespace.formats import PlainLora, write_adapter
from sharespace.linalg.dimension import Dimension
from sharespace.store import checkout
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.build import initialise
from sharespace.subspace.merge import merge
from sharespace.subspace.state import BuildSettings
from store.models import assert_same
from subspace.copied import Copied

RULES: tuple[dict[str, Any], ...] = (
    {"k": 2},
    {"variance": 0.9},
    {"error": 0.2},
    {"budget": 900},
    {"k": 3, "p": 1},
    {"k": 2, "method": "share"},
    {"variance": 0.9, "method": "share", "centred": True},
)


def both(adapters: list[Adapter], rule: dict[str, Any]) -> tuple[Any, Any]:
    """(here, through bytes)."""
    dimension = Dimension(**{n: rule.get(n) for n in ("k", "variance", "error", "budget")})
    method: str = rule.get("method", "joint")
    settings = BuildSettings(method=method, centred=rule.get("centred", False), p=rule.get("p"))
    here = initialise(adapters, dimension, settings)
    return here, initialise(adapters, dimension, settings, executor=Copied())


@law()
@given(families(dtypes=DTYPES, ranks=(1, 2, 5)), st.sampled_from(RULES))
def test_a_build_through_bytes_is_the_same(family: Family, rule: dict[str, Any]) -> None:
    here, there = both(family.adapters, rule)
    assert_same(there, here)


@law()
@given(
    families(ranks=(1, 2, 5), tasks=(2, 6)),
    st.sampled_from([None, 2, 30]),
    st.sampled_from(["joint", "share"]),
)
def test_a_merge_through_bytes_is_the_same(family: Family, cap: int | None, method: str) -> None:
    known, *new = family.adapters
    model = build([known], cap, variance=None if cap else 1.0, method=method)
    assert_same(merge(model, new, executor=Copied()), merge(model, new))


def test_a_merge_under_a_budget_is_the_same() -> None:
    first, *new = strangers(5)
    model = build([first], budget=700)
    assert_same(merge(model, new, executor=Copied()), merge(model, new))


def test_modules_that_only_some_adapt_are_the_same() -> None:
    some = [
        adapter("both", {"a": update(9, 7, 2, 1), "b": update(6, 8, 3, 2)}),
        adapter("one", {"b": update(6, 8, 1, 3)}),
    ]
    new = [adapter("new", {"b": update(6, 8, 2, 4), "c": update(5, 5, 2, 5)})]
    here, there = both(some, {"variance": 1.0})
    assert_same(there, here)
    assert_same(merge(here, new, executor=Copied()), merge(here, new))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Adapter]:
    """Three adapters of 40 layers, opened by relative paths."""
    for i in range(3):
        updates = {f"layer.{m}": update(64, 48, 4, 10 * m + i) for m in range(40)}
        write_adapter(
            tmp_path / f"t{i}", PlainLora(updates, kept={"base_model.model.head": torch.ones(9)})
        )
    monkeypatch.chdir(tmp_path)
    return [read_adapter(f"t{i}") for i in range(3)]


def test_files_travel_as_places_in_them(files: list[Adapter], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    through = Copied(tmp_path / "elsewhere")
    initialise(files, Dimension(k=2), BuildSettings(), executor=through)
    numbers = sum(a.nbytes for a in files) / 40
    assert len(through.sent) == 40
    assert max(through.sent) < min(numbers, 3000)


def test_a_checkpoint_travels_as_places_in_it(tmp_path: Path) -> None:
    write_adapter(tmp_path / "t", PlainLora({"a": update(64, 48, 4), "b": update(64, 48, 4, 1)}))
    tensors = _all(tmp_path / "t")
    torch.save(tensors, tmp_path / "t" / "adapter_model.bin")
    (tmp_path / "t" / "adapter_model.safetensors").unlink()
    opened, through = [read_adapter(tmp_path / "t")], Copied()
    there = initialise(opened, Dimension(k=2), BuildSettings(), executor=through)
    assert_same(there, initialise(opened, Dimension(k=2), BuildSettings()))
    assert max(through.sent) < 3000


def _all(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "adapter_model.safetensors")


def test_a_stored_model_travels_by_layer(files: list[Adapter], tmp_path: Path) -> None:
    Share.from_adapters(files[:2], k=2).save(tmp_path / "s")
    model, through = checkout(tmp_path / "s").model, Copied()
    assert_same(merge(model, files[2:], executor=through), merge(model, files[2:]))
    layer = model.layers["layer.0"].nbytes
    assert max(through.sent) < 2 * layer + 3000


def test_a_file_that_was_replaced_is_refused_there(files: list[Adapter], tmp_path: Path) -> None:
    weights = tmp_path / "t1" / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data + b" ")
    with pytest.raises(CorruptAdapterError, match="changed after it was opened"):
        initialise(files, Dimension(k=2), BuildSettings(), executor=Copied())


def test_progress_is_told_in_order(files: list[Adapter]) -> None:
    told: list[tuple[str, int, int]] = []
    Share.from_adapters(files, k=2, executor=Copied(), progress=lambda *seen: told.append(seen))
    assert told == [(m, i, 40) for i, m in enumerate(files[0].shapes, 1)]
