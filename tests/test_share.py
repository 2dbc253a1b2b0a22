"""The library's face: sources, verbs, saving, exporting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from builders import (
    DTYPES,
    FULL,
    MODULE,
    Family,
    adapter,
    dense,
    families,
    law,
    stored_dense,
    strangers,
    update,
)
from sharespace import Share, history, read_adapter
from sharespace.errors import (
    MismatchError,
    OptionError,
    StoreConflictError,
    StoreExistsError,
    TaskExistsError,
    TaskNotFoundError,
)
from sharespace.formats import PlainLora, write_adapter
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.plan import BuildPlan
from store.models import assert_same
from support_formats import tiny

CONFIG = {"peft_type": "LORA", "task_type": None, "bias": "none"}


def written(folder: Path, name: str, seed: int = 0) -> Path:
    """An adapter of two modules and a head, as PEFT writes it."""
    made = _adapter(name, seed)
    (path,) = write_adapter(
        folder / name,
        PlainLora.from_adapter(made),
    )
    return path


def _adapter(name: str, seed: int = 0) -> Adapter:
    return adapter(
        name,
        {"body.first": update(6, 8, 2, seed), "body.second": update(6, 6, 2, seed + 50)},
        kept={
            "base_model.model.head.weight": torch.full((3, 6), float(seed)),
            "base_model.model.head.bias": torch.zeros(3),
        },
        config={**CONFIG, "modules_to_save": ["head"]},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three adapters on disk: a, b, c."""
    for seed, name in enumerate("abc"):
        written(tmp_path, name, seed)
    return tmp_path


def test_sources_may_be_paths_names_or_open_adapters(folder: Path) -> None:
    one = folder / "a"
    assert Share.from_adapters(one).tasks == ("a",)
    assert Share.from_adapters(str(one)).tasks == ("a",)
    assert Share.from_adapters([one, str(folder / "b")]).tasks == ("a", "b")
    assert Share.from_adapters({"x": one, "y": one}).tasks == ("x", "y")
    assert Share.from_adapters(read_adapter(one)).tasks == ("a",)
    assert Share.from_adapters({"z": read_adapter(one)}).tasks == ("z",)
    assert Share.from_adapters(p for p in [one]).tasks == ("a",)
    with pytest.raises(TaskExistsError):
        Share.from_adapters([one, one])
    with pytest.raises(OptionError):
        Share.from_adapters([])


def test_without_a_rule_99_percent_are_explained() -> None:
    adapters = strangers(3, 20, 20, 5)
    kept = Share.from_adapters(adapters).fidelity(adapters)
    squares = [t.relative_error**2 for t in kept.tasks.values()]
    assert sum(squares) / 3 <= 0.01 + 1e-6
    assert Share.from_adapters(adapters, k=4).model.layers[MODULE].k == (4, 4)
    with pytest.raises(OptionError):
        Share.from_adapters(adapters, k=4, variance=0.5)


def test_every_verb_returns_a_new_share(folder: Path) -> None:
    share = Share.from_adapters([folder / "a"], k=8)
    merged = share.merge([folder / "b"])
    joined = merged.union(Share.from_adapters(folder / "c"))
    renamed = joined.rename("a", "first")
    removed = renamed.remove("b")
    assert [s.tasks for s in (share, merged, joined, renamed, removed)] == [
        ("a",),
        ("a", "b"),
        ("a", "b", "c"),
        ("first", "b", "c"),
        ("first", "c"),
    ]
    with pytest.raises(TaskNotFoundError):
        removed.task("b")
    with pytest.raises(MismatchError):
        share.merge(adapter("odd", {"body.first": update(5, 8, 2)}))


def test_saving_and_loading_and_the_history(folder: Path) -> None:
    store = folder / "s.share"
    share = Share.from_adapters([folder / "a"], k=8)
    assert repr(share.version) == "None"
    with pytest.raises(OptionError, match="path"):
        share.save()
    assert share.save(store) == 1 == share.version
    assert share.save() == 1
    loaded = Share.load(store)
    assert loaded.version == 1
    merged = loaded.merge([folder / "b"]).rename("b", "two")
    assert merged.save() == 2
    assert [v.operation.verb for v in history(store)][-1] == "merge+rename"
    assert Share.load(store, 1).tasks == ("a",)
    with pytest.raises(StoreConflictError):
        loaded.remove("a").save()
    with pytest.raises(StoreExistsError):
        Share.from_adapters(folder / "c").save(store)


def test_a_copy_goes_on_where_it_was_saved_last(folder: Path) -> None:
    share = Share.from_adapters([folder / "a"], k=8)
    share.save(folder / "one.share")
    share.save(folder / "two.share")
    grown = share.merge([folder / "b"])
    assert grown.save() == 2
    assert Share.load(folder / "two.share").tasks == ("a", "b")
    assert Share.load(folder / "one.share").tasks == ("a",)


@law(15)
@given(
    family=families(dtypes=DTYPES, tasks=(2, 4)),
    stored=st.sampled_from(DTYPES),
    rule=st.sampled_from([{"k": 3}, {"variance": 1.0}, {"budget": 700}]),
)
def test_loading_gives_the_bits_that_were_saved(
    tmp_path_factory: pytest.TempPathFactory,
    family: Family,
    stored: torch.dtype,
    rule: dict[str, float],
) -> None:
    path = tmp_path_factory.mktemp("law") / "s.share"
    share = Share.from_adapters(family.adapters[:1], dtype=stored, **rule)  # type: ignore[arg-type]
    share.save(path)
    loaded = Share.load(path)
    assert_same(loaded.model, share.model)
    try:
        merged = share.merge(family.adapters[1:])
    except OptionError:
        reject()  # So few bytes may be refused: nothing of a task would be left.
    again = loaded.merge(family.adapters[1:])
    assert_same(again.model, merged.model)
    again.save()
    assert_same(Share.load(path).model, merged.model)


def test_an_export_reads_back_as_our_reconstruction(folder: Path) -> None:
    share = Share.from_adapters([folder / "a", folder / "b"], k=2)
    (path,) = share.export("b", folder / "out", rank=5)
    back = read_adapter(path)
    assert set(back.ranks.values()) == {5}
    for module, ours in share.updates("b").items():
        assert float((dense(back.layer(module)) - dense(ours)).norm()) < 1e-6
    head = "base_model.model.head.weight"
    assert torch.equal(back.kept[head], read_adapter(folder / "b").kept[head])
    with pytest.raises(OptionError, match="unknown format"):
        share.export("b", folder / "more", to="onnx")
    with pytest.raises(TaskNotFoundError):
        share.export("x", folder / "more")


def test_the_base_model_with_a_task_merged_in(folder: Path) -> None:
    share = Share.from_adapters([folder / "a", folder / "b"], k=FULL)
    model, merged = tiny(), share.merge_into_base(tiny(), "b")
    for layer, module in (("first", "body.first"), ("second", "body.second")):
        change = merged.body[layer].weight - model.body[layer].weight  # type: ignore[index,union-attr]
        wanted = dense(read_adapter(folder / "b").layer(module))
        torch.testing.assert_close(change.double(), wanted, rtol=0, atol=1e-6)
    assert torch.equal(merged.head.weight, torch.ones(3, 6))  # type: ignore[union-attr,arg-type]


def test_fidelity_nulls_and_plan_take_the_same_sources(folder: Path) -> None:
    paths: Sequence[Path] = [folder / "a", folder / "b"]
    share = Share.from_adapters(paths, k=2)
    kept = share.fidelity(paths)
    assert kept.tasks.keys() == share.baselines(paths).own_svd.keys() == {"a", "b"}
    found = Share.plan(paths, k=2)
    assert isinstance(found, BuildPlan)
    assert found.fidelity.tasks["a"].relative_error == kept.tasks["a"].relative_error
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b", "c"]


def test_the_representation_says_what_there_is() -> None:
    share = Share.from_adapters(strangers(2), k=2)
    assert repr(share) == "Share(2 tasks, 1 layers, k 2 to 2, method 'joint', base None)"


def test_updates_are_the_stored_task() -> None:
    share = Share.from_adapters(strangers(2), k=2)
    found = dense(share.updates("t1")[MODULE])
    assert float((found - stored_dense(share.model, "t1")).norm()) < 1e-6
