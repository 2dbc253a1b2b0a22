"""verify finds damage of every kind and names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from builders import build, relatives
from sharespace import Share
from sharespace.errors import CorruptStoreError, SchemaVersionError
from sharespace.store import Operation, checkout, commit, load, verify
from sharespace.store.schema import FileRef
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import ShareModel
from store.models import model, orthonormal
from store.reseal import replace_object, reseal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    commit(tmp_path / "s", model(), operation=Operation("init"), expected_parent=None)
    return tmp_path / "s"


def refs(path: Path) -> dict[str, FileRef]:
    content = checkout(path).manifest.content
    kept = content.tasks[0].kept
    assert kept is not None
    return {"basis": content.basis, "task": content.tasks[0].coefficients, "kept": kept}


def test_a_whole_store(path: Path) -> None:
    report = verify(path)
    assert report.ok
    assert report.versions == (1,)
    assert [f.status for f in report.findings] == ["ok"] * 7
    assert {f.file for f in report.findings} == {
        str(f.relative_to(path)) for f in path.rglob("*") if f.is_file() and f.name != "lock"
    }


@pytest.mark.parametrize("role", ["basis", "task", "kept"])
def test_missing_cut_and_flipped(path: Path, role: str) -> None:
    ref = refs(path)[role]
    file = path / ref.file
    data = file.read_bytes()
    flipped = bytes([*data[:-1], data[-1] ^ 1])
    for damaged in (data[:-1], data + b"x", flipped, b""):
        file.write_bytes(damaged)
        (found,) = verify(path).damaged
        assert (found.version, found.file, found.status) == (1, ref.file, "corrupt")
    file.unlink()
    (found,) = verify(path).damaged
    assert (found.file, found.status) == (ref.file, "missing")
    file.mkdir()
    assert verify(path).damaged[0].status == "corrupt"


def touch(loaded: ShareModel, role: str) -> None:
    """Read every tensor of the role."""
    if role == "basis":
        list(loaded.layers.values())
    elif role == "task":
        list(loaded.tasks.values())
    else:
        [list(t.kept.values()) for t in loaded.tasks.values()]


@pytest.mark.parametrize("role", ["basis", "task", "kept"])
def test_a_load_finds_the_same_damage_on_first_access(path: Path, role: str) -> None:
    file = path / refs(path)[role].file
    data = file.read_bytes()
    file.write_bytes(bytes([*data[:-1], data[-1] ^ 1]))
    with pytest.raises(CorruptStoreError, match="verify"):
        touch(load(path), role)
    touch(load(path, verify=False), role)
    file.write_bytes(data[:-1])
    unchecked = load(path, verify=False)
    with pytest.raises(CorruptStoreError, match="bytes instead of"):
        touch(unchecked, role)


Change = Callable[[dict[str, Tensor]], object]
LAYER = "encoder.layer.10.query"
BAD_TENSORS: dict[str, tuple[str, str, Change]] = {
    "left out": ("basis", "misfit", lambda t: t.pop(f"{LAYER}.left_basis")),
    "added": ("basis", "misfit", lambda t: t.update(x=torch.ones(1))),
    "cut": ("basis", "misfit", lambda t: t.update({f"{LAYER}.left_basis": torch.eye(7, 2)})),
    "cast": (
        "basis",
        "misfit",
        lambda t: t.update({f"{LAYER}.left_basis": torch.eye(7, 3).half()}),
    ),
    "flat": ("basis", "misfit", lambda t: t.update({f"{LAYER}.left_basis": torch.ones(7)})),
    "scaled": ("basis", "not orthonormal", lambda t: t[f"{LAYER}.right_basis"].mul_(1.001)),
    "nan": ("basis", "not finite", lambda t: t[f"{LAYER}.right_basis"].fill_(float("nan"))),
    "infinite": ("task", "not finite", lambda t: t[f"{LAYER}.left"].fill_(float("inf"))),
    "no right": ("task", "misfit", lambda t: t.pop(f"{LAYER}.right")),
    "both": ("task", "misfit", lambda t: t.update({f"{LAYER}.core": torch.ones(3, 4)})),
    "too long": ("task", "misfit", lambda t: t.update({f"{LAYER}.left": torch.ones(4, 2)})),
    "other p": ("task", "misfit", lambda t: t.update({f"{LAYER}.left": torch.ones(3, 1)})),
    "stray": ("task", "misfit", lambda t: t.update(x=torch.ones(1))),
    "no ledger": ("task", "misfit", lambda t: t.pop("ledger.norms")),
    "ledger cast": ("task", "misfit", lambda t: t.update({"ledger.norms": torch.ones(3)})),
    "ledger cut": ("task", "misfit", lambda t: t.update({"ledger.norms": t["ledger.norms"][:2]})),
    "losses": (
        "task",
        "misfit",
        lambda t: t.update({"ledger.truncations": torch.ones(3, 2).double()}),
    ),
    "less lost": ("task", "misfit", lambda t: t["ledger.truncations"].mul_(0.5)),
}


@pytest.mark.parametrize("bad", BAD_TENSORS)
def test_files_that_do_not_fit_their_manifest(path: Path, bad: str) -> None:
    """Sealed with right hashes, as a faulty program would have written them."""
    role, status, change = BAD_TENSORS[bad]
    ref = replace_object(path, refs(path)[role], change)
    (found,) = verify(path).damaged
    assert (found.file, found.status) == (ref.file, status)
    if status == "misfit" and bad != "less lost":
        with pytest.raises(CorruptStoreError, match=ref.sha256):
            touch(load(path), role)


def test_all_versions(path: Path) -> None:
    parent = checkout(path).version
    other = commit(path, model(("a",)), operation=Operation("remove"), expected_parent=parent)
    (path / refs(path)["kept"].file).unlink()
    report = verify(path, all_versions=True)
    assert report.versions == (1, 2)
    assert [(f.version, f.status) for f in report.damaged] == [(1, "missing")]
    (path / other.ref.file).unlink()
    (path / parent.ref.file).write_bytes(b"{}")
    statuses = {f.file: f.status for f in verify(path, all_versions=True).damaged}
    assert statuses == {other.ref.file: "missing", parent.ref.file: "corrupt"}


def test_a_damaged_head_is_a_finding(path: Path) -> None:
    (path / "share.json").write_bytes(b"{")
    report = verify(path)
    assert [(f.file, f.status) for f in report.damaged] == [("share.json", "corrupt")]
    assert report.versions == (1,)


def test_a_newer_schema_is_refused(path: Path) -> None:
    def newer(manifest: dict[str, Any]) -> None:
        manifest["schema_version"] = 4

    reseal(path, newer)
    for action in (load, verify):
        with pytest.raises(SchemaVersionError, match="Upgrade"):
            action(path)


@pytest.mark.parametrize("rule", [{"k": 8}, {"budget": 4000}])
def test_adapters_in_float32_stored_in_float64(tmp_path: Path, rule: dict[str, int]) -> None:
    """Their bases were orthonormal to float32 only, which verify called damage."""
    Share(build(relatives(6, 40, 32), dtype=torch.float64, **rule)).save(tmp_path / "s")
    assert verify(tmp_path / "s").ok


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounding_of_any_dtype_is_orthonormal_enough(tmp_path: Path, dtype: torch.dtype) -> None:
    from sharespace.subspace.adapter import ModuleShape

    big = LayerSubspace(
        ModuleShape(900, 700), orthonormal(900, 64, 0, dtype), orthonormal(700, 64, 1, dtype)
    )
    wanted = model((), dtype, layers={"m": big})
    commit(tmp_path / "s", wanted, operation=Operation("init"), expected_parent=None)
    assert verify(tmp_path / "s").ok
