"""Whatever the bytes on disk are: only SharespaceError comes out, and nothing is changed."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharespace.errors import CorruptStoreError, SchemaVersionError, SharespaceError
from sharespace.store import Operation, checkout, commit, history, load, verify
from sharespace.store import objects as object_files
from sharespace.store.schema import FileRef
from sharespace.subspace.coefficients import Core
from sharespace.subspace.state import ShareModel
from store.models import SHAPES, K, assert_same, model
from store.reseal import replace_bytes, replace_object, reseal, reseal_bytes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "s"
    commit(path, model(), operation=Operation("init", ("a",)), expected_parent=None)
    return path


@pytest.fixture
def path(tmp_path: Path, whole: Path) -> Path:
    shutil.copytree(whole, tmp_path / "s")
    return tmp_path / "s"


def read_all(path: Path) -> ShareModel:
    found = load(path)
    list(found.layers.values())
    for task in found.tasks.values():
        list(task.kept.items())
    return found


def probe(path: Path) -> list[SharespaceError]:
    """Run every reader; anything but a SharespaceError is a failure of the test."""
    before = snapshot(path)
    errors: list[SharespaceError] = []
    for action in (read_all, checkout, history, verify):
        try:
            action(path)
        except SharespaceError as error:
            errors.append(error)
    assert snapshot(path) == before
    return errors


def snapshot(path: Path) -> dict[Path, bytes | str]:
    return {
        f: str(f.readlink()) if f.is_symlink() else f.read_bytes()
        for f in path.rglob("*")
        if f.is_file() or f.is_symlink()
    }


def objects(path: Path) -> dict[str, FileRef]:
    content = checkout(path).manifest.content
    kept = content.tasks[0].kept
    assert kept is not None
    return {"basis": content.basis, "task": content.tasks[0].coefficients, "kept": kept}


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Cut off, flipped, inserted, or replaced."""
    at = draw(st.integers(0, len(data) - 1))
    kind = draw(st.sampled_from(["cut", "flip", "insert", "byte", "zero"]))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    if kind == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=9)) + data[at:]
    if kind == "zero":
        return data[:at] + bytes(len(data) - at)
    return data[:at] + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]


FILES = ("share.json", "manifest", "basis", "task", "kept")


@pytest.mark.parametrize("which", FILES)
@settings(max_examples=12, deadline=None)
@given(draw=st.data())
def test_damage_by_the_disk_is_found(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, which: str, draw: st.DataObject
) -> None:
    """Hashes are as they were: any change of a byte is noticed."""
    path = tmp_path_factory.mktemp("damage") / "s"
    shutil.copytree(whole, path)
    found = objects(path)
    files = {"share.json": "share.json", "manifest": checkout(path).version.ref.file}
    file = path / (files[which] if which in files else found[which].file)
    data = file.read_bytes()
    file.write_bytes(draw.draw(damaged(data)))
    errors = probe(path)
    if file.read_bytes() == data or (which == "share.json" and not errors):
        assert_same(read_all(path), model())
    else:
        assert errors
    shutil.rmtree(path)


@pytest.mark.parametrize("which", FILES[1:])
@settings(max_examples=20, deadline=None)
@given(draw=st.data())
def test_damage_by_a_program_is_survived(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, which: str, draw: st.DataObject
) -> None:
    """Hashes are made right again: what is read is then another model, or an error."""
    path = tmp_path_factory.mktemp("damage") / "s"
    shutil.copytree(whole, path)
    if which == "manifest":
        data = (path / checkout(path).version.ref.file).read_bytes()
        reseal_bytes(path, draw.draw(damaged(data)))
    else:
        ref = objects(path)[which]
        replace_bytes(path, ref, draw.draw(damaged((path / ref.file).read_bytes())))
    probe(path)
    shutil.rmtree(path)


VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 2**53, 10**30, "", "x", "../../../etc/passwd", "\ud800", [], ["x"],
    [1, 2], {}, {"x": 1}, [[[]]], "0" * 64, float("nan"), float("inf"), 1e-320,
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field of a JSON value; of lists the first item."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, inner in items:
        yield (*at, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*at, key))


def test_any_value_in_any_field(path: Path) -> None:
    manifest = json.loads((path / checkout(path).version.ref.file).read_bytes())
    refused = accepted = 0
    for place in places(manifest):
        for value in (*VALUES, KeyError):
            changed = json.loads(json.dumps(manifest))
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            if value is KeyError:
                del inner[place[-1]]
            else:
                inner[place[-1]] = value
            reseal_bytes(path, json.dumps(changed).encode())
            try:
                read_all(path)
            except SharespaceError:
                refused += 1
            else:
                accepted += 1
    assert refused > 5 * accepted, (refused, accepted)


def test_any_value_in_head(path: Path) -> None:
    head = json.loads((path / "share.json").read_bytes())
    for key in head:
        for value in VALUES:
            (path / "share.json").write_text(json.dumps({**head, key: value}))
            assert probe(path), (key, value)
        (path / "share.json").write_text(json.dumps({k: v for k, v in head.items() if k != key}))
        assert probe(path)


@pytest.mark.parametrize(
    "file",
    [
        "../outside-{}.safetensors",
        "/etc/passwd",
        "objects/../../outside/basis-{}.safetensors",
        "objects/basis-{}.safetensors/../../x",
        "objects//basis-{}.safetensors",
        "./objects/basis-{}.safetensors",
        "objects\\basis-{}.safetensors",
        "objects/task-{}.safetensors",
        "objects/basis-{}.safetensors\n",
        "objects/basis-{}.safetensors\x00",
        "",
    ],
)
def test_no_path_leads_out(path: Path, file: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["basis"]["file"] = file.format(manifest["basis"]["sha256"])

    reseal(path, change)
    with pytest.raises(CorruptStoreError, match=r"basis\.file: not objects/basis-"):
        load(path)


@pytest.mark.parametrize("current", ["../versions/{}", "/{}", "versions/../{}", "objects/{}", "{}"])
def test_head_leads_to_versions_only(path: Path, current: str) -> None:
    head = json.loads((path / "share.json").read_bytes())
    head["current"] = current.format(Path(head["current"]).name)
    (path / "share.json").write_text(json.dumps(head))
    with pytest.raises(CorruptStoreError, match="current: not the path of a version"):
        load(path)


def test_a_link_is_followed_to_the_right_bytes_only(path: Path, tmp_path: Path) -> None:
    """As in the Hub's cache, where each file of a snapshot is a link; hashes are checked."""
    file = path / objects(path)["task"].file
    outside = tmp_path / "outside"
    file.rename(outside)
    file.symlink_to(outside)
    assert_same(read_all(path), model())
    for target in ("/dev/zero", "/etc/passwd", tmp_path, "nowhere", file.name):
        file.unlink()
        file.symlink_to(target)
        assert probe(path)


def test_a_fifo_does_not_block(path: Path) -> None:
    for file in (path / "share.json", path / objects(path)["basis"].file):
        data = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        assert probe(path)
        file.unlink()
        file.write_bytes(data)


JSON_BYTES = {
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "number": b'{"format": ' + b"1" * 10_000 + b"}",
    "latin": b'{"format": "\xe9"}',
    "bom": b"\xef\xbb\xbf{}",
    "utf-16": '{"format": "sharespace"}'.encode("utf-16"),
    "nothing": b"",
    "nan": b"NaN",
    "large": b" " * 70_000 + b"{}",
}


@pytest.mark.parametrize("name", JSON_BYTES)
def test_json_that_is_none(path: Path, name: str) -> None:
    reseal_bytes(path, JSON_BYTES[name])
    with pytest.raises(CorruptStoreError):
        load(path)
    (path / "share.json").write_bytes(JSON_BYTES[name])
    with pytest.raises(CorruptStoreError):
        load(path)


def double_task(manifest: dict[str, Any]) -> None:
    manifest["tasks"].append(manifest["tasks"][0])


def double_layer(manifest: dict[str, Any]) -> None:
    manifest["layers"].append(manifest["layers"][0])


def no_name(manifest: dict[str, Any]) -> None:
    manifest["tasks"][0]["name"] = ""


def other_kernel(manifest: dict[str, Any]) -> None:
    manifest["layers"][2]["kernel"] = [5, 5]


def wide(manifest: dict[str, Any]) -> None:
    """A basis that would be larger than its file; a task padded to it would fill the memory."""
    manifest["layers"][0] |= {"k_left": 10**12, "out_features": 10**12}


def other_number(manifest: dict[str, Any]) -> None:
    manifest["version"] = 2


CHANGES = {
    double_task: "tasks: 'a' stands there twice",
    double_layer: "layers: 'encoder.layer.10.query' stands there twice",
    no_name: "tasks: a name is empty",
    other_kernel: r"layers\[2\].kernel: does not fit",
    wide: "basis: 1588 bytes cannot hold",
    other_number: "it says that it is version 2",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_manifests_that_contradict_themselves(path: Path, change: Any) -> None:
    reseal(path, change)
    with pytest.raises(CorruptStoreError, match=CHANGES[change]):
        load(path)


def test_a_key_that_stands_twice(path: Path) -> None:
    data = (path / checkout(path).version.ref.file).read_bytes()
    reseal_bytes(path, data.replace(b'"tool"', b'"dtype": "float64", "tool"'))
    with pytest.raises(CorruptStoreError, match="is written twice in one object"):
        load(path)


def test_unknown_fields_are_ignored(path: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["later"] = {"x": 1}
        manifest["tasks"][0]["later"] = manifest["layers"][0]["later"] = [1]

    reseal(path, change)
    assert_same(read_all(path), model())


@pytest.mark.parametrize("file", ["share.json", "manifest"])
def test_a_newer_schema(path: Path, file: str) -> None:
    if file == "manifest":
        reseal(path, lambda manifest: manifest.update(schema_version=4, tasks="something new"))
    else:
        head = json.loads((path / file).read_bytes())
        (path / file).write_text(json.dumps({**head, "schema_version": 4, "current": 7}))
    errors = probe(path)
    assert len(errors) == 4
    assert {type(error) for error in errors} == {SchemaVersionError}


def header(data: bytes) -> dict[str, Any]:
    size = struct.unpack("<Q", data[:8])[0]
    found: dict[str, Any] = json.loads(data[8 : 8 + size])
    return found


def with_header(data: bytes, new: bytes, claimed: int | None = None) -> bytes:
    size = struct.unpack("<Q", data[:8])[0]
    return struct.pack("<Q", len(new) if claimed is None else claimed) + new + data[8 + size :]


@pytest.mark.parametrize("claimed", [0, 2**63, 2**64 - 1, 10**8 + 1, 7])
@pytest.mark.parametrize("role", ["basis", "task", "kept"])
def test_header_lengths(path: Path, role: str, claimed: int) -> None:
    ref = objects(path)[role]
    data = (path / ref.file).read_bytes()
    replace_bytes(path, ref, with_header(data, json.dumps(header(data)).encode(), claimed))
    with pytest.raises(CorruptStoreError, match="not a safetensors file"):
        read_all(path)
    probe(path)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "C64", "U64", "I32", "x", 7, None])
@pytest.mark.parametrize("role", ["basis", "task", "kept"])
def test_header_dtypes(path: Path, role: str, dtype: object) -> None:
    ref = objects(path)[role]
    data = (path / ref.file).read_bytes()
    changed = header(data)
    for name in changed:
        if name != "__metadata__":
            changed[name]["dtype"] = dtype
    replace_bytes(path, ref, with_header(data, json.dumps(changed).encode()))
    assert probe(path) or role == "kept"


METADATA = {
    "none": None, "empty": "", "text": "x", "list": "[]", "deep": "[" * 10**5, "nan": "NaN",
    "no modules": '{"modules": []}', "text modules": '{"modules": "abc"}',
    "double": '{"modules": ["encoder.layer.10.query", "encoder.layer.10.query"]}',
    "foreign": '{"modules": ["x"]}',
}  # fmt: skip


@pytest.mark.parametrize("name", METADATA)
def test_task_metadata(path: Path, name: str) -> None:
    ref = objects(path)["task"]
    data = (path / ref.file).read_bytes()
    changed = header(data)
    changed["__metadata__"] = {"sharespace": METADATA[name]} if METADATA[name] is not None else {}
    replace_bytes(path, ref, with_header(data, json.dumps(changed).encode()))
    with pytest.raises(CorruptStoreError):
        read_all(path)
    probe(path)


def test_any_value_in_any_metadata_field(path: Path) -> None:
    ref = objects(path)["task"]
    data = (path / ref.file).read_bytes()
    metadata = json.loads(header(data)["__metadata__"]["sharespace"])
    for place in places(metadata):
        if place[0] == "config" and len(place) > 1:
            continue
        values: tuple[Any, ...] = (7, None, [], ["x"], {}, -1)
        for value in values:
            changed = json.loads(json.dumps(metadata))
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            new = header(data)
            new["__metadata__"]["sharespace"] = json.dumps(changed)
            ref = replace_bytes(path, ref, with_header(data, json.dumps(new).encode()))
            with suppress(SharespaceError):
                read_all(path)


def test_a_matrix_without_rows_does_not_fill_the_memory(path: Path) -> None:
    """[0, p] takes no bytes in the file for any p, and k x p of them in memory."""
    module = next(iter(SHAPES))
    many = {f"{module}.{side}": torch.zeros(0, 10**15) for side in ("left", "right")}
    replace_object(path, objects(path)["task"], lambda tensors: tensors.update(many))
    with pytest.raises(CorruptStoreError, match="larger than linear 7x5"):
        read_all(path)


def test_other_writers_may_leave_zero_rows(path: Path) -> None:
    """Readers take them; only the store's own files never have them."""
    module = list(SHAPES)[1]
    core = torch.zeros(K)
    core[0, 0] = 1
    replace_object(path, objects(path)["task"], lambda t: t.update({f"{module}.core": core}))
    found = load(path).tasks["a"].coefficients[module]
    assert isinstance(found, Core)
    assert torch.equal(found.matrix, core)


def test_a_file_that_cannot_be_mapped_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch says so by a RuntimeError, with a backtrace behind it."""
    commit(tmp_path / "s", model(("a",)), operation=Operation("init"), expected_parent=None)

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("unable to open file </x>: Input/output error (5)\nbacktrace:\n#0")

    monkeypatch.setattr(object_files, "safe_open", failing)
    with pytest.raises(CorruptStoreError, match=r"safetensors: it cannot be opened") as refused:
        load(tmp_path / "s").task("a")
    assert "\n" not in str(refused.value)
