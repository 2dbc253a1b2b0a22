"""save -> load is bit-identical, whatever the dtype, the names and the zeros."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sharespace.errors import MismatchError, StoreError
from sharespace.store import Operation, checkout, commit, load
from sharespace.subspace.coefficients import Coefficients, Core, Factors, PerTask
from sharespace.subspace.layer import Certificate, LayerSubspace
from sharespace.subspace.state import BuildSettings, ShareModel
from store.models import (
    SHAPES,
    WEIRD_NAMES,
    K,
    assert_bits,
    assert_same,
    layers,
    model,
    orthonormal,
    task,
    values,
)
from store.reseal import reseal

INIT = Operation("init")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def round_trip(path: Path, wanted: ShareModel) -> ShareModel:
    commit(path, wanted, operation=INIT, expected_parent=None)
    found = load(path)
    assert_same(found, wanted)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_coefficients(tmp_path: Path, dtype: torch.dtype) -> None:
    round_trip(tmp_path / "s", model(WEIRD_NAMES, dtype))


def test_empty_models(tmp_path: Path) -> None:
    round_trip(tmp_path / "no tasks", model(()))
    round_trip(tmp_path / "nothing", model((), layers={}))


def test_all_settings_are_stored(tmp_path: Path) -> None:
    odd = BuildSettings("share", centred=True, p=3, cap=9, budget=0, seed=2**62)
    assert all(getattr(odd, f.name) != f.default for f in fields(BuildSettings))
    round_trip(tmp_path / "s", model(settings=odd))


def test_a_store_that_says_centred_of_joint_bases_still_loads(tmp_path: Path) -> None:
    """It was once written down beside method joint, where it never had an effect."""
    commit(tmp_path / "s", model(), operation=INIT, expected_parent=None)
    reseal(tmp_path / "s", lambda manifest: manifest["settings"].update(centred=True))
    assert not load(tmp_path / "s").settings.centred


def test_the_order_of_layers_and_tasks_is_kept(tmp_path: Path) -> None:
    found = round_trip(tmp_path / "s", model(("z", "a", "m")))
    assert list(found.layers) == list(SHAPES)
    assert list(found.tasks) == ["z", "a", "m"]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.text(min_size=1, alphabet=st.characters(exclude_categories=())))
def test_any_name_is_kept_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.mktemp("store") / "s"
    pair = any("\ud800" <= a <= "\udbff" and "\udc00" <= b <= "\udfff" for a, b in pairwise(name))
    if pair:  # JSON has no way to say this apart from the character that the pair stands for
        with pytest.raises(StoreError, match="surrogate pair"):
            commit(path, model((name,)), operation=INIT, expected_parent=None)
        assert not path.exists()
    else:
        round_trip(path, model((name,)))


ZERO = st.sampled_from([0.0, 0.0, 0.0, -0.0, 1.0])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(ZERO, min_size=6, max_size=6),
    st.lists(ZERO, min_size=8, max_size=8),
    st.lists(ZERO, min_size=12, max_size=12),
    st.sampled_from(DTYPES),
)
def test_zeros_and_their_signs(
    tmp_path_factory: pytest.TempPathFactory,
    left: list[float],
    right: list[float],
    core: list[float],
    dtype: torch.dtype,
) -> None:
    one, other, third = SHAPES
    found: dict[str, Coefficients] = {
        one: Factors(matrix(left, 3, dtype), matrix(right, 4, dtype)),
        other: Core(matrix(core, 3, dtype)),
        third: PerTask(torch.zeros(8, 2, dtype=dtype), torch.zeros(36, 2, dtype=dtype)),
    }
    wanted = model((), dtype, tasks={"t": replace(task("t", dtype=dtype), coefficients=found)})
    round_trip(tmp_path_factory.mktemp("store") / "s", wanted)


def matrix(numbers: list[float], rows: int, dtype: torch.dtype) -> Tensor:
    return torch.tensor(numbers, dtype=dtype).reshape(rows, -1)


@pytest.mark.parametrize("p", [0, 1])
def test_empty_factors(tmp_path: Path, p: int) -> None:
    coefficients = {next(iter(SHAPES)): Factors(torch.zeros(3, p), torch.ones(4, p))}
    wanted = model((), tasks={"t": replace(task("t"), coefficients=coefficients)})
    round_trip(tmp_path / "s", wanted)


def test_kept_tensors_of_any_dtype_and_layout(tmp_path: Path) -> None:
    kept = {
        "transposed": values(0, 3, 5).T,
        "expanded": torch.ones(1, 1, dtype=torch.bool).expand(3, 4),
        "scalar": torch.tensor(-0.0, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3, dtype=torch.int64),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "unsigned": torch.tensor([2**63], dtype=torch.uint64),
        "not finite": torch.tensor([float("nan"), float("inf")]),
        "é🎉/..\n": torch.ones(1, dtype=torch.int8),
    }
    round_trip(tmp_path / "s", model((), tasks={"t": task("t", kept=kept)}))


def enlarged(old: ShareModel) -> ShareModel:
    """As an exact merge does it: one more direction on each side, zero rows for old tasks."""
    k_left, k_right = (k + 1 for k in K)
    grown = {
        module: LayerSubspace(
            layer.shape,
            orthonormal(layer.shape.out_features, k_left, 7, old.dtype),
            orthonormal(layer.shape.in_features, k_right, 8, old.dtype),
            certificate=Certificate(0, 0, 0),
        )
        for module, layer in old.layers.items()
    }
    tasks = [
        replace(t, coefficients={m: grow(c) for m, c in t.coefficients.items()})
        for t in old.tasks.values()
    ]
    return old.with_layers(grown).with_tasks(tasks)


def grow(c: Coefficients) -> Coefficients:
    pad = torch.nn.functional.pad
    if isinstance(c, Factors):
        return Factors(pad(c.left, (0, 0, 0, 1)), pad(c.right, (0, 0, 0, 1)))
    return Core(pad(c.matrix, (0, 1, 0, 1))) if isinstance(c, Core) else c


def test_an_exact_merge_rewrites_no_task(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = commit(path, model(), operation=INIT, expected_parent=None)
    before = {f: f.stat().st_mtime_ns for f in path.glob("objects/task-*")}
    wanted = enlarged(load(path))
    commit(path, wanted, operation=Operation("add"), expected_parent=first)
    assert {f: f.stat().st_mtime_ns for f in path.glob("objects/task-*")} == before
    assert_same(load(path), wanted)
    assert_same(load(path, 1), model())


def test_saving_elsewhere_gives_the_same_files(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    commit(a, model(), operation=INIT, expected_parent=None)
    commit(b, load(a), operation=INIT, expected_parent=None)  # files, copied
    rebuilt = load(a).with_layers(dict(load(a).layers)).with_tasks(load(a).tasks.values())
    commit(c, rebuilt, operation=INIT, expected_parent=None)  # written anew
    files = [{f.name: f.read_bytes() for f in (p / "objects").iterdir()} for p in (a, b, c)]
    assert files[0] == files[1] == files[2]
    assert_same(load(b), model())


def test_a_rename_and_a_removal_write_no_object(tmp_path: Path) -> None:
    path = tmp_path / "s"
    commit(path, model(), operation=INIT, expected_parent=None)
    objects = sorted(path.glob("objects/*"))
    opened = checkout(path)
    renamed = opened.model.with_renamed("a", "x")
    version = commit(path, renamed, operation=Operation("rename"), expected_parent=opened.version)
    removed = load(path).without_tasks("b")
    commit(path, removed, operation=Operation("remove"), expected_parent=version)
    assert sorted(path.glob("objects/*")) == objects
    assert_bits(load(path).tasks["x"].ledger.norms, task("a").ledger.norms)


def test_loading_reads_nothing_until_asked(tmp_path: Path) -> None:
    path = tmp_path / "s"
    commit(path, model(), operation=INIT, expected_parent=None)
    for file in path.glob("objects/*"):
        file.unlink()
    opened = checkout(path)
    assert list(opened.model.tasks) == ["a", "b"]
    assert "a" in opened.model.tasks
    assert len(opened.model.layers) == 3
    summary = opened.manifest.content.tasks[0].summary
    assert (summary.adapter_bytes, summary.modules, summary.measured) == (1234, 3, True)
    assert summary.bound == task("a").ledger.bound


BAD_TASKS: dict[str, dict[str, Coefficients]] = {
    "rows": {next(iter(SHAPES)): Factors(torch.ones(2, 1), torch.ones(4, 1))},
    "ranks": {next(iter(SHAPES)): Factors(torch.ones(3, 1), torch.ones(4, 2))},
    "dtype": {next(iter(SHAPES)): Core(torch.ones(3, 4, dtype=torch.float64))},
    "private": {next(iter(SHAPES)): PerTask(torch.ones(3, 1), torch.ones(4, 1))},
    "module": {"unknown": Core(torch.ones(3, 4))},
}


@pytest.mark.parametrize("bad", BAD_TASKS)
def test_coefficients_that_do_not_fit_are_refused(tmp_path: Path, bad: str) -> None:
    wrong = replace(task("t"), coefficients=BAD_TASKS[bad])
    with pytest.raises(MismatchError, match="task 't'"):
        commit(tmp_path / "s", model(tasks={"t": wrong}), operation=INIT, expected_parent=None)
    assert not (tmp_path / "s").exists()


UNWRITABLE: dict[str, dict[str, Any]] = {
    "tuple": {"config": {"targets": ("a", "b")}},
    "set": {"config": {"targets": {"a"}}},
    "integer key": {"config": {"pattern": {1: 2}}},
    "nan": {"config": {"loss": float("nan")}},
    "complex": {"kept": {"x": torch.ones(1, dtype=torch.complex64)}},
    "sparse": {"kept": {"x": torch.ones(2, 2).to_sparse()}},
    "key": {"kept": {"__metadata__": torch.ones(1)}},
    "surrogate": {"kept": {"\ud800": torch.ones(1)}},
    "bytes": {"adapter_bytes": -1},
}


@pytest.mark.parametrize("bad", UNWRITABLE)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path: Path, bad: str) -> None:
    wrong = model(tasks={"t": task("t", **UNWRITABLE[bad])})
    with pytest.raises(StoreError):
        commit(tmp_path / "s", wrong, operation=INIT, expected_parent=None)
    assert not (tmp_path / "s").exists()


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    bad = layers()
    next(iter(bad.values())).left_basis[0, 0] = float("nan")
    with pytest.raises(StoreError, match="not finite"):
        commit(tmp_path / "s", model(layers=bad), operation=INIT, expected_parent=None)
