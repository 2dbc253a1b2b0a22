"""Combinations of tasks, against the dense sum, however the parts are stored; and beside PEFT."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from builders import (
    DTYPES,
    FULL,
    MODULE,
    ROUNDING,
    Family,
    adapter,
    build,
    dense,
    families,
    gauss,
    law,
    originals,
    relatives,
    stored_dense,
    strangers,
    update,
)
from sharespace import Share
from sharespace.errors import (
    MismatchError,
    OptionError,
    TaskExistsError,
    TaskNotFoundError,
    UnsupportedAdapterError,
)
from sharespace.store import verify
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.coefficients import Core, Factors, PerTask
from sharespace.subspace.combine import ties
from sharespace.subspace.state import ShareModel
from subspace.test_groups import BUDGET, adapters, schema_version

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

WEIGHTS = st.floats(-3, 3).filter(lambda w: abs(w) > 1e-3)
GROUPED = ("a0", "a1", "b0", "b1", "odd")
"""Two tasks of one group of tasks, two of another, and one that is stored per task."""


@pytest.fixture(scope="module")
def grouped() -> Share:
    model = build(adapters(), budget=BUDGET)
    return Share(model.with_tasks([model.tasks[name] for name in GROUPED]))


def dense_sum(model: ShareModel, weights: dict[str, float], module: str = MODULE) -> Tensor:
    return torch.stack([w * stored_dense(model, n, module) for n, w in weights.items()]).sum(0)


def assert_sum(share: Share, weights: dict[str, float], rounding: float) -> None:
    """The combination is the dense sum, up to the rounding of what was added."""
    combined = share.combine(weights, name="both")
    wanted = dense_sum(share.model, weights)
    size = sum(abs(w) * float(stored_dense(share.model, n).norm()) for n, w in weights.items())
    error = float((stored_dense(combined.model, "both") - wanted).norm())
    assert error <= rounding * size
    ledger = combined.task("both").ledger
    assert ledger.norm(MODULE) == pytest.approx(float(wanted.norm()), abs=1e-6 * size)
    for name in share.tasks:
        assert combined.task(name) is share.task(name)


@law()
@given(family=families(tasks=(2, 4), dtypes=DTYPES), data=st.data())
def test_a_combination_is_the_dense_sum(family: Family, data: st.DataObject) -> None:
    k = data.draw(st.sampled_from([2, FULL]))
    share = Share(build(family.adapters, k))
    weights = {name: data.draw(WEIGHTS) for name in share.tasks}
    assert_sum(share, weights, ROUNDING[family.dtype])


@law()
@given(family=families(tasks=(2, 4), dtypes=DTYPES), data=st.data())
def test_its_ledger_bounds_the_error_against_the_original_adapters(
    family: Family, data: st.DataObject
) -> None:
    share = Share(build(family.adapters, data.draw(st.sampled_from([1, 2, 5]))))
    weights = {name: data.draw(WEIGHTS) for name in share.tasks}
    combined = share.combine(weights, name="both")
    whole = originals(family.adapters)
    wanted = torch.stack([w * whole[name][MODULE] for name, w in weights.items()]).sum(0)
    error = float((stored_dense(combined.model, "both") - wanted).norm())
    size = sum(abs(w) * float(whole[n][MODULE].norm()) for n, w in weights.items())
    assert error <= float(combined.task("both").ledger.bounds[0]) + 1e-13 * size


@law(40)
@given(
    names=st.lists(st.sampled_from(GROUPED), min_size=1, max_size=4, unique=True),
    weights=st.lists(WEIGHTS, min_size=4, max_size=4),
)
def test_every_combination_of_storage(
    grouped: Share, names: list[str], weights: list[float]
) -> None:
    assert_sum(grouped, dict(zip(names, weights, strict=False)), 1e-5)


@pytest.mark.parametrize(
    ("names", "kind", "rank"),
    [
        (("a0", "a1"), Core, 2),
        (("b0", "b1"), Core, 2),
        (("a0", "b0"), Core, 4),
        (("a0", "odd"), PerTask, 5),
        (("a0", "b0", "odd"), PerTask, 7),
    ],
)
def test_the_result_says_how_it_is_stored_and_its_rank(
    grouped: Share, names: tuple[str, ...], kind: type, rank: int
) -> None:
    task = grouped.combine(dict.fromkeys(names, 0.5), name="both").task("both")
    assert type(task.coefficients[MODULE]) is kind
    assert task.ranks == {MODULE: rank}
    if names == ("b0", "b1"):
        assert task.coefficients[MODULE].offset == (2, 2)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_weight_one_alone_is_the_task_itself(grouped: Share, method: str) -> None:
    shares = [grouped, *(Share(build(strangers(3, dtype=d), 4)) for d in DTYPES)]
    for share in shares:
        for name in GROUPED if share is grouped else share.tasks:
            combined = share.combine({name: 1}, name="same", method=method)
            assert torch.equal(
                stored_dense(combined.model, "same"), stored_dense(share.model, name)
            )
            assert type(combined.task("same").coefficients[MODULE]) is type(
                share.task(name).coefficients[MODULE]
            )


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_order_does_not_matter_and_negation_negates(grouped: Share, method: str) -> None:
    weights = {"a0": 0.7, "b0": -0.2, "odd": 1.5}
    forward = dense_of(grouped, weights, method)
    backward = dense_of(grouped, dict(reversed(weights.items())), method)
    negative = dense_of(grouped, {n: -w for n, w in weights.items()}, method)
    twice = dense_of(grouped, {n: 2 * w for n, w in weights.items()}, method)
    torch.testing.assert_close(backward, forward, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(twice, 2 * forward, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(negative, -forward, rtol=1e-5, atol=1e-6)


def combined_by(share: Share, weights: dict[str, float], method: str, density: float) -> Share:
    if method == "ties":
        return share.combine(weights, name="both", method=method, density=density)
    return share.combine(weights, name="both", method=method)


def dense_of(share: Share, weights: dict[str, float], method: str, density: float = 0.2) -> Tensor:
    return stored_dense(combined_by(share, weights, method, density).model, "both")


def test_a_combination_of_combinations_is_one_sum() -> None:
    share = Share(build(strangers(3), 6))
    nested = share.combine({"t0": 0.5, "t1": 2}, name="x").combine({"x": 3, "t2": -1}, name="y")
    wanted = dense_sum(share.model, {"t0": 1.5, "t1": 6, "t2": -1})
    torch.testing.assert_close(stored_dense(nested.model, "y"), wanted, rtol=1e-5, atol=1e-5)
    bounds = [share.task(name).ledger.bounds[0] for name in share.tasks]
    inherited = 1.5 * bounds[0] + 6 * bounds[1] + bounds[2]
    assert float(nested.task("y").ledger.bounds[0]) == pytest.approx(float(inherited), rel=1e-3)


def test_what_is_subtracted_from_itself_is_nothing() -> None:
    share = Share(build(strangers(2), FULL)).combine({"t0": 1}, name="same")
    nothing = share.combine({"t0": 1, "same": -1}, name="nothing")
    assert float(stored_dense(nothing.model, "nothing").norm()) < 1e-15


def test_many_parts_have_no_more_columns_than_a_side(grouped: Share) -> None:
    model = grouped.model
    odd = model.tasks["odd"]
    copies = [replace(odd, name=f"odd{i}") for i in range(20)]
    share = Share(model.with_tasks(copies))
    combined = share.combine({task.name: 1.0 for task in copies}, name="sum")
    assert combined.task("sum").ranks == {MODULE: 3}
    wanted = 20 * stored_dense(model, "odd")
    torch.testing.assert_close(stored_dense(combined.model, "sum"), wanted, rtol=1e-5, atol=1e-5)


def two_layers(name: str, seed: int) -> Adapter:
    return adapter(
        name, {"h.0.q": update(8, 6, 2, seed), "h.0.v": update(8, 6, 2, seed + 1)}, kept={}
    )


def test_a_scale_of_a_pattern_of_layers() -> None:
    share = Share(build([two_layers("x", 1), two_layers("y", 5)], FULL))
    scales = {"*.q": 0.5, "*": 2.0}
    both = share.combine({"x": 1, "y": -1}, name="both", scales=scales)
    for module, scale in (("h.0.q", 0.5), ("h.0.v", 2.0)):
        wanted = scale * dense_sum(share.model, {"x": 1, "y": -1}, module)
        found = stored_dense(both.model, "both", module)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert both.task("both").provenance.source == "linear x:1.0+y:-1.0, *.q x 0.5, * x 2"
    with pytest.raises(OptionError, match="no layer of these tasks matches it"):
        share.combine({"x": 1}, name="z", scales={"*.k": 2})


def test_tasks_of_different_layers() -> None:
    half = adapter("half", {"h.0.q": update(8, 6, 2, 9)})
    share = Share(build([two_layers("x", 1), half], FULL))
    for method in ("linear", "ties"):
        both = combined_by(share, {"half": 2, "x": 0.5}, method, 1.0)
        assert set(both.task("both").coefficients) == {"h.0.q", "h.0.v"}
        wanted = 0.5 * stored_dense(share.model, "x", "h.0.v")
        found = stored_dense(both.model, "both", "h.0.v")
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_it_is_stored_loaded_exported_and_merged_with(
    tmp_path: Path, method: str, dtype: torch.dtype
) -> None:
    share = Share(build(relatives(3, dtype=dtype), 4)).combine(
        {"t0": 0.7, "t1": 0.3}, name="both", method=method
    )
    share.save(tmp_path / "s")
    loaded = Share.load(tmp_path / "s")
    assert verify(tmp_path / "s").ok
    source = f"{method} t0:0.7+t1:0.3"
    assert loaded.task("both").provenance.source == source
    assert torch.equal(stored_dense(loaded.model, "both"), stored_dense(share.model, "both"))
    loaded.export("both", tmp_path / "both")
    again = Share.from_adapters([tmp_path / "both"], k=FULL)
    wanted = stored_dense(share.model, "both")
    error = (stored_dense(again.model, "both") - wanted).norm() / wanted.norm()
    assert float(error) <= ROUNDING[dtype]
    merged = loaded.merge([adapter("new", update(12, 9, 3, 77, dtype=dtype))], cap=FULL)
    assert float((stored_dense(merged.model, "both") - wanted).norm()) <= 1e-12


@pytest.mark.parametrize("version", [1, 2, 3])
def test_stores_of_every_schema_version(tmp_path: Path, version: int) -> None:
    shutil.copytree(GOLDEN / f"store-v{version}", tmp_path / "s")
    share = Share.load(tmp_path / "s")
    first, second = share.tasks[:2]
    combined = share.combine({first: 0.7, second: -0.2}, name="both", heads=first)
    combined.save()
    loaded = Share.load(tmp_path / "s")
    assert verify(tmp_path / "s").ok
    assert schema_version(tmp_path / "s") == version
    for module, value in loaded.updates("both").items():
        parts = [
            w * dense(share.updates(n)[module])
            for n, w in ((first, 0.7), (second, -0.2))
            if module in share.task(n).coefficients
        ]
        torch.testing.assert_close(dense(value), sum(parts), rtol=1e-2, atol=1e-2)


# Methods that are no sum.


def test_ties_in_core_space_does_not_depend_on_how_the_parts_are_stored() -> None:
    parts = [*relatives(3), adapter("t3", update(12, 9, 2, 5))]
    weights = {"t0": 1.0, "t1": 0.5, "t3": -0.8}
    alone = Share(build([a for a in parts if a.name in weights], variance=1.0))
    among = Share(build([adapter("other", update(12, 9, 2, 6)), *parts], variance=1.0))
    model = alone.model
    own = {
        name: replace(
            model.tasks[name],
            coefficients={MODULE: PerTask(*_factors(stored_dense(model, name)))},
        )
        for name in ("t1", "t3")
    }
    per_task = Share(model.with_tasks([own.get(n, t) for n, t in model.tasks.items()]))
    wanted = dense_of(alone, weights, "ties", density=0.5)
    for share in (among, per_task):
        found = dense_of(share, weights, "ties", density=0.5)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def _factors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-5 * s[0]).sum())
    return (u[:, :rank] * s[:rank]).float(), vh[:rank].mT.contiguous().float()


def test_ties_is_pefts() -> None:
    """PEFT elects signs before it multiplies by the weights; with weights of 1 it is the same."""
    merging = pytest.importorskip("peft.utils.merge_utils")
    for seed, density in enumerate((0.2, 0.5, 0.9)):
        cores = gauss(seed, 4, 7, 6)
        wanted = merging.ties(list(cores), torch.ones(4).double(), density)
        assert torch.equal(ties(cores, density), wanted)


def test_ties_of_one_task_at_density_one_is_the_task() -> None:
    share = Share(build(strangers(2), 4))
    found = dense_of(share, {"t0": 1}, "ties", density=1.0)
    torch.testing.assert_close(found, stored_dense(share.model, "t0"), rtol=1e-5, atol=1e-6)


def test_a_method_that_is_no_sum_says_what_its_bound_is_of() -> None:
    share = Share(build(strangers(3), 2))
    assert share.task("t0").ledger.bound > 0.1
    assert share.combine({"t0": 1, "t1": 1}, name="x", method="ties").task("x").ledger.bound < 1e-6
    assert share.combine({"t0": 1, "t1": 1}, name="x").task("x").ledger.bound > 0.1


# What is refused.


def headed(
    name: str,
    seed: int,
    value: float,
    labels: tuple[str, ...] = (),
    files: Mapping[str, Tensor] | None = None,
) -> Adapter:
    kept = {"base_model.model.classifier.weight": torch.full((2, 3), value)}
    made = adapter(name, update(8, 6, 2, seed), kept=kept)
    return replace(made, labels=labels, files=files or {})


def test_heads_that_differ_are_refused_unless_it_is_said_whose() -> None:
    first, second = headed("x", 1, 1.0, labels=("no", "yes")), headed("y", 2, 2.0)
    share = Share(build([first, second, headed("z", 3, 1.0)], FULL))
    with pytest.raises(MismatchError, match=r"'x' and 'y': their heads.*heads=NAME"):
        share.combine({"x": 1, "y": 1}, name="both")
    for heads, value in (("x", 1.0), ("y", 2.0)):
        task = share.combine({"x": 1, "y": 1}, name="both", heads=heads).task("both")
        assert float(task.kept["base_model.model.classifier.weight"][0, 0]) == value
    same = share.combine({"z": 1, "x": 1}, name="both").task("both")
    assert same.labels == ("no", "yes")
    with pytest.raises(OptionError, match="heads='z': is not combined"):
        share.combine({"x": 1, "y": 1}, name="both", heads="z")


def test_tokenizers_and_labels_that_differ_are_refused() -> None:
    file = {"tokenizer.json": torch.tensor([1, 2], dtype=torch.uint8)}
    plain = headed("x", 1, 1.0, labels=("no", "yes"))
    share = Share(
        build([plain, headed("y", 2, 1.0, files=file), headed("z", 3, 1.0, labels=("a", "b"))], 4)
    )
    with pytest.raises(MismatchError, match="tokenizers or chat templates differ"):
        share.combine({"x": 1, "y": 1}, name="both")
    with pytest.raises(MismatchError, match="names of their classes differ"):
        share.combine({"x": 1, "z": 1}, name="both")
    taken = share.combine({"x": 1, "y": 1}, name="both", heads="y").task("both")
    assert set(taken.files) == {"tokenizer.json"}


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("base_model.model.m.lora_magnitude_vector.weight", "DoRA magnitudes"),
        ("base_model.model.e.lora_embedding_A", "LoRA of embeddings"),
        ("base_model.model.m.lora_B.bias", "biases of factors"),
    ],
)
def test_what_is_more_than_factors_is_refused(key: str, what: str) -> None:
    share = Share(build([adapter("x", update(8, 6, 2), kept={key: torch.ones(8)})], 2))
    with pytest.raises(UnsupportedAdapterError, match=what):
        share.combine({"x": 0.5}, name="half")


def test_what_cannot_be_combined_is_refused() -> None:
    share = Share(build(strangers(2), 2))
    for weights in ({}, {"t0": float("nan")}, {"t0": float("inf")}, {"t0": True}):
        with pytest.raises(OptionError):
            share.combine(weights, name="x")
    with pytest.raises(TaskNotFoundError):
        share.combine({"t0": 1, "t9": 1}, name="x")
    with pytest.raises(TaskExistsError):
        share.combine({"t0": 1}, name="t1")
    with pytest.raises(OptionError, match="Choose one of linear"):
        share.combine({"t0": 1}, name="x", method="average")
    with pytest.raises(OptionError, match="'linear' does not have it"):
        share.combine({"t0": 1}, name="x", density=0.5)
    for density in (0.0, 1.5):
        with pytest.raises(OptionError, match="density"):
            share.combine({"t0": 1}, name="x", method="ties", density=density)


def test_numbers_that_do_not_fit_the_dtype_are_refused() -> None:
    share = Share(build(strangers(2, dtype=torch.float16), 2))
    with pytest.raises(OptionError, match="too large for float16"):
        share.combine({"t0": 1e9}, name="x")


# Beside PEFT.


def test_it_is_what_pefts_exact_ways_give(tmp_path: Path) -> None:
    """PEFT's "cat" adds updates up exactly, "svd" where its rank is large enough; its "linear"
    multiplies sums of factors, which is something else."""
    peft = pytest.importorskip("peft")
    base = torch.nn.Sequential(torch.nn.Linear(9, 12), torch.nn.Linear(12, 9))
    adapters = [
        adapter(f"t{i}", {"0": update(12, 9, 3, i), "1": update(9, 12, 2, 50 + i)})
        for i in range(3)
    ]
    share = Share(build(adapters, FULL))
    weights = {"t0": 0.7, "t1": 0.5, "t2": -0.3}
    share = share.combine(weights, name="both")
    for name in share.tasks:
        share.export(name, tmp_path / name)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "t0", adapter_name="t0")
    for name in ("t1", "t2", "both"):
        model.load_adapter(tmp_path / name, adapter_name=name)
    names, factors = list(weights), list(weights.values())
    model.add_weighted_adapter(names, factors, "cat", combination_type="cat")
    model.add_weighted_adapter(names, factors, "svd", combination_type="svd", svd_rank=9)
    model.add_weighted_adapter(names, factors, "linear", combination_type="linear")
    for layer, module in (("0", model.base_model.model[0]), ("1", model.base_model.model[1])):
        wanted = dense_sum(share.model, weights, layer).float()
        for exact in ("cat", "svd", "both"):
            found = module.get_delta_weight(exact)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        rough = module.get_delta_weight("linear")
        assert float((rough - wanted).norm()) > 0.1 * float(wanted.norm())


def test_factors_of_small_rank_stay_factors() -> None:
    """In a wide subspace two narrow tasks take the bytes of both, not those of a core."""
    share = Share(build(strangers(8, 40, 30, rank=2), FULL))
    value = share.combine({"t0": 1, "t1": 1}, name="both").task("both").coefficients[MODULE]
    assert isinstance(value, Factors)
    assert value.rank == 4
    assert dense(share.updates("t0")[MODULE]).shape == (40, 30)
