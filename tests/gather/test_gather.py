"""Contributions from any version, in any order, each once; bad ones are set aside."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import frame, gauss, law, stored_dense
from gather.workers import ALL, BASE, SHAPES, adapter, dense_of, grow, plain, put, start, trained
from sharespace.errors import InboxError, OptionError, StoreNotFoundError
from sharespace.gather import (
    BasisReference,
    Contribution,
    Coordinates,
    Gathered,
    Gatherer,
    GatherSettings,
    PlainFactors,
    gather,
    hand_in,
)
from sharespace.gather.inboxes import LocalInbox
from sharespace.linalg.dimension import Dimension
from sharespace.store import (
    Operation,
    checkout,
    commit,
    history,
    load,
    prune,
    remove,
    rename,
    rollback,
    verify,
)
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate, ModuleShape, fingerprint
from sharespace.subspace.build import initialise
from sharespace.subspace.state import BuildSettings, ShareModel


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []


def errors(store: Path, task: str, wanted: dict[str, torch.Tensor]) -> float:
    """Largest relative error of a task's modules."""
    model = load(store)
    return max(
        float((stored_dense(model, task, m) - w).norm() / w.norm()) for m, w in wanted.items()
    )


def reasons(inbox: Path) -> list[dict[str, Any]]:
    found = (inbox / "quarantine").glob("*.json")
    return [json.loads(path.read_bytes()) for path in sorted(found)]


def test_contributions_of_every_version_arrive_exactly(store: Path, inbox: Path) -> None:
    first = load(store)
    grow(store, "more", 5)
    second = load(store)
    grow(store, "most", 6)
    found = [trained(first, "old", 1), trained(second, "newer", 2, version=2), plain("lora", 7)]
    models = {"old": first, "newer": second, "lora": first}
    for one in found:
        put(inbox, one)
    assert {a.task for a in gather(store, inbox).merged} == set(models)
    for one in found:
        wanted = {m: dense_of(models[one.task], one, m) for m in SHAPES}
        assert errors(store, one.task, wanted) < 2e-6
    new = load(store).task("old")
    assert torch.equal(new.kept["base_model.model.head.weight"], next(iter(found[0].kept.values())))
    assert new.config == found[0].config
    assert new.provenance.sha256 in checkout(store).manifest.contributions
    assert new.ledger.bound < 1e-5
    assert verify(store, all_versions=True).ok


def _two_groups() -> ShareModel:
    """Two groups of tasks under a budget with room for more, each with its own subspaces."""
    members = []
    for number in range(2):
        frames = {m: (frame(n, 2, number), frame(d, 2, number + 5)) for m, (n, d) in SHAPES.items()}
        for i in range(40):
            seed = 1000 * number + i
            updates = {
                m: LayerUpdate(
                    (left @ gauss(seed, 2, 2)).float(), (gauss(seed + 500, 2, 2) @ right.mT).float()
                )
                for m, (left, right) in frames.items()
            }
            members.append(Adapter.from_updates(f"f{number}-{i}", updates, base=BASE))
    bases = sum(4 * (n + d) for n, d in SHAPES.values())
    return initialise(members, Dimension(budget=4 * (bases + 2 * 80 * 4) + 900), base=BASE)


def test_trained_where_groups_have_subspaces_of_their_own(store: Path, inbox: Path) -> None:
    model = _two_groups()
    assert all(len(layer.groups) == 2 for layer in model.layers.values())
    groups = store.parent / "groups.share"
    commit(groups, model, operation=Operation("init"), expected_parent=None)
    one = trained(model, "new", 1)
    put(inbox, one)
    assert [a.task for a in gather(groups, inbox).merged] == ["new"]
    assert errors(groups, "new", {m: dense_of(model, one, m) for m in SHAPES}) < 1e-5
    assert verify(groups, all_versions=True).ok


def test_old_tasks_stay_bit_for_bit(store: Path, inbox: Path) -> None:
    before = {m: stored_dense(load(store), "first", m) for m in SHAPES}
    put(inbox, trained(load(store), "new", 1))
    gather(store, inbox)
    assert all(torch.equal(stored_dense(load(store), "first", m), w) for m, w in before.items())


def test_coefficients_alone_add_no_direction(store: Path, inbox: Path) -> None:
    put(inbox, trained(load(store), "inside", 1, p=1, phi=0))
    k = {m: layer.k for m, layer in load(store).layers.items()}
    gather(store, inbox)
    assert {m: layer.k for m, layer in load(store).layers.items()} == k


def seven_contributions(store: Path) -> tuple[list[Contribution], dict[str, ShareModel]]:
    """Seven contributions against three versions."""
    models = [load(store)]
    for i in (1, 2):
        grow(store, f"grown{i}", 40 + i)
        models.append(load(store))
    found = [trained(models[i % 3], f"t{i}", i, version=i % 3 + 1) for i in range(5)]
    found += [plain("l0", 60), plain("l1", 61, rank=2)]
    return found, {one.task: models[i % 3] for i, one in enumerate(found)}


@law(10)
@given(order=st.permutations(range(7)), cuts=st.sets(st.integers(1, 6)), batch=st.integers(1, 8))
def test_order_and_batches_make_no_difference(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cuts: set[int], batch: int
) -> None:
    folder = tmp_path_factory.mktemp("order")
    store, inbox = folder / "s", folder / "inbox"
    start(store)
    found, models = seven_contributions(store)
    for at, index in enumerate(order, 1):
        put(inbox, found[index])
        if at in cuts:
            gather(store, inbox, batch=batch)
    gather(store, inbox, batch=batch)
    assert set(load(store).tasks) == {"first", "grown1", "grown2", *models}
    for one in found:
        wanted = {m: dense_of(models[one.task], one, m) for m in SHAPES}
        assert errors(store, one.task, wanted) < 1e-5


def test_the_inbox_is_tidy_afterwards(store: Path, inbox: Path) -> None:
    name = put(inbox, plain("a", 1))
    (inbox / "README.txt").write_text("not for us")
    (inbox / ".tmp-123.safetensors").write_bytes(b"being written")
    gather(store, inbox)
    assert files(inbox) == [".tmp-123.safetensors", "README.txt"]
    assert files(inbox / "merged") == [name]
    assert not (inbox / "quarantine").exists()


def test_the_same_file_again_is_merged_once(store: Path, inbox: Path) -> None:
    name = put(inbox, plain("a", 1))
    gather(store, inbox)
    changes: list[Callable[[], object]] = [
        lambda: rename(store, "a", "b"),
        lambda: remove(store, ["b"]),
    ]
    for change in changes:
        change()
        put(inbox, plain("a", 1))
        found = gather(store, inbox)
        assert not found.merged
        assert found.repeated == (name[13:77],)
        assert not files(inbox)
    assert set(load(store).tasks) == {"first"}
    prune(store, keep=1)
    put(inbox, plain("a", 1))
    assert gather(store, inbox).repeated


def test_what_was_rolled_back_can_come_again(store: Path, inbox: Path) -> None:
    put(inbox, plain("a", 1))
    gather(store, inbox)
    rollback(store, 1)
    put(inbox, plain("a", 1))
    assert [a.task for a in gather(store, inbox).merged] == ["a"]


def test_two_names_of_one_file(store: Path, inbox: Path) -> None:
    name = put(inbox, plain("a", 1))
    (inbox / "copy.safetensors").write_bytes((inbox / name).read_bytes())
    assert len(gather(store, inbox).merged) == 1
    assert files(inbox / "merged") == [name]
    assert not files(inbox)


def test_batches_and_their_reports(store: Path, inbox: Path) -> None:
    for i in range(5):
        put(inbox, plain(f"t{i}", i))
    seen: list[Gathered] = []
    found = gather(store, inbox, batch=2, observe=seen.append)
    assert [len(s.merged) for s in seen] == [2, 2, 1]
    assert (found.version, len(found.merged)) == (4, 5)
    assert [v.operation.verb for v in history(store)] == ["init", "gather", "gather", "gather"]


def wrong_shape() -> Contribution:
    found = plain("shape", 3)
    return replace(found, updates={"q": found.updates["v"]}, fingerprint=None)


def wrong_rows(model: ShareModel) -> Contribution:
    found = trained(model, "rows", 3)
    q = found.updates["q"]
    assert isinstance(q, Coordinates)
    return replace(found, updates={"q": replace(q, left=q.left[1:])})


def unknown_module(model: ShareModel) -> Contribution:
    found = trained(model, "module", 3)
    return replace(found, updates={"x": found.updates["q"]})


def bad_ones(model: ShareModel) -> dict[str, tuple[Contribution, str]]:
    good = trained(model, "good", 9)
    return {
        "base": (plain("base", 3, base=BaseModel("other/base")), "other/base"),
        "shape": (wrong_shape(), "belong to different base models"),
        "rows": (wrong_rows(model), "rows of coefficients"),
        "module": (unknown_module(model), "no such module"),
        "fingerprint": (replace(good, task="fingerprint", fingerprint="0" * 64), "fingerprint"),
        "plain fingerprint": (replace(plain("p", 3), fingerprint="0" * 64), "fingerprint"),
        "version": (
            replace(good, task="v", basis=BasisReference("0" * 64, 9)),
            "does not have yet",
        ),
        "basis": (
            replace(good, task="b", basis=BasisReference("0" * 64, 1)),
            "no version of this store",
        ),
        "no version": (
            replace(good, task="n", basis=BasisReference("0" * 64, None)),
            "has the bases",
        ),
        "clash": (plain("first", 3), "name already"),
    }


@pytest.mark.parametrize("kind", range(10))
def test_a_bad_one_is_set_aside_and_stops_nothing(store: Path, inbox: Path, kind: int) -> None:
    name, (bad, reason) = list(bad_ones(load(store)).items())[kind]
    file = put(inbox, bad)
    put(inbox, plain("good", 1))
    found = gather(store, inbox)
    assert [a.task for a in found.merged] == ["good"], name
    assert [r.file for r in found.refused] == [file]
    assert files(inbox / "quarantine") == [file, f"{file}.json"]
    (record,) = reasons(inbox)
    assert reason in f"{record['why']} {record['remedy']}"
    assert record["task"] == bad.task
    assert set(load(store).tasks) == {"first", "good"}
    assert not gather(store, inbox).refused


def test_files_that_are_damaged_are_set_aside(store: Path, inbox: Path) -> None:
    name = put(inbox, plain("a", 1))
    whole = (inbox / name).read_bytes()
    (inbox / name).write_bytes(whole[:-3])
    gather(store, inbox)
    (inbox / name).write_bytes(whole[:-4])
    (inbox / "junk.safetensors").write_bytes(b"\xff" * 30)
    (inbox / "empty.safetensors").write_bytes(b"")
    os.mkfifo(inbox / "pipe.safetensors")
    put(inbox, plain("b", 2))
    found = gather(store, inbox)
    assert [a.task for a in found.merged] == ["b"]
    assert len(found.refused) == 4
    assert len(reasons(inbox)) == 5, "of each damaged file, also of two under one name"
    assert not files(inbox)


def handmade(
    inbox: Path,
    dtype: str = "F32",
    shape: tuple[int, ...] = (1,),
    nbytes: int = 4,
    config: str = "{}",
) -> None:
    """A contribution with a head of any dtype and any configuration, which no writer makes."""
    tensors = {
        "scalings": ("F64", (1,), np.ones(1).tobytes()),
        "kept.head": (dtype, shape, bytes(nbytes)),
        "update.q.up": ("F32", (12, 1), np.full((12, 1), 0.1, np.float32).tobytes()),
        "update.q.down": ("F32", (1, 10), np.full((1, 10), 0.1, np.float32).tobytes()),
    }
    header: dict[str, Any] = {}
    data = b""
    for name, (kind, size, content) in tensors.items():
        place = [len(data), len(data) + len(content)]
        header[name] = {"dtype": kind, "shape": size, "data_offsets": place}
        data += content
    value = {
        "format": "sharespace-contribution",
        "schema_version": 1,
        "task": "bad",
        "base_model": {"id": None, "revision": None, "fingerprint": None},
        "basis": None,
        "modules": [{"module": "q", "kind": "linear", "kernel": []}],
        "config": "CONFIG",
        "provenance": {"format": "peft", "source": "", "sha256": None},
        "data_sha256": hashlib.sha256(data).hexdigest(),
    }
    metadata = json.dumps(value).replace('"CONFIG"', config)
    text = json.dumps(header | {"__metadata__": {"sharespace": metadata}}).encode()
    text += b" " * (-len(text) % 8)
    (inbox / "bad.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def unknown_dtype(inbox: Path) -> None:
    handmade(inbox, "F8_E8M0", (2,), 2)


def small_dtype(inbox: Path) -> None:
    handmade(inbox, "F4", (2, 2), 2)


def complex_head(inbox: Path) -> None:
    handmade(inbox, "C64", (1,), 8)


def huge_number(inbox: Path) -> None:
    handmade(inbox, config='{"x": 1e999}')


def infinite_number(inbox: Path) -> None:
    handmade(inbox, config='{"x": -Infinity}')


def no_number(inbox: Path) -> None:
    handmade(inbox, config='{"x": NaN}')


def deep(inbox: Path) -> None:
    handmade(inbox, config='{"x": ' + "[" * 50000 + "]" * 50000 + "}")


def link_to_itself(inbox: Path) -> None:
    (inbox / "bad.safetensors").symlink_to("bad.safetensors")


def link_to_nothing(inbox: Path) -> None:
    (inbox / "bad.safetensors").symlink_to("nothing")


def link_to_a_device(inbox: Path) -> None:
    (inbox / "bad.safetensors").symlink_to("/dev/zero")


def folder(inbox: Path) -> None:
    (inbox / "bad.safetensors").mkdir()
    (inbox / "bad.safetensors" / "file").write_text("")


def socket_file(inbox: Path) -> None:
    place = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(inbox)  # the address of a socket has at most 108 bytes
    try:
        place.bind("bad.safetensors")
    finally:
        os.chdir(here)
        place.close()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (unknown_dtype, "dtype 'F8_E8M0'"),
        (small_dtype, "dtype 'F4'"),
        (complex_head, "cannot be stored"),
        (huge_number, "larger than any number"),
        (infinite_number, "-Infinity is not a JSON number"),
        (no_number, "NaN is not a JSON number"),
        (deep, "nested too deep"),
        (link_to_itself, "symbolic links"),
        (link_to_nothing, "symbolic link to nothing"),
        (link_to_a_device, "not a regular file"),
        (folder, "Is a directory"),
        (socket_file, "cannot be read"),
    ],
)
def test_whatever_lies_there_the_others_go_on(
    store: Path, inbox: Path, make: Callable[[Path], None], reason: str
) -> None:
    for _ in range(2):
        make(inbox)
        put(inbox, plain("good", 1))
        found = gather(store, inbox, on_conflict="replace")
        assert [reason in r.why for r in found.refused] == [True], found.refused
        assert not files(inbox)
    assert set(load(store).tasks) == {"first", "good"}
    assert len(reasons(inbox)) in (1, 2), "files of equal bytes have one reason"
    assert verify(store).ok


def test_a_file_that_may_not_be_read(
    store: Path, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, who may read everything."""
    put(inbox, plain("good", 1))
    secret = put(inbox, plain("secret", 2))
    opened = os.open

    def refusing(path: str | os.PathLike[str], *args: int) -> int:
        if str(path).endswith(secret):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args)

    monkeypatch.setattr("sharespace.files.os.open", refusing)
    found = gather(store, inbox)
    assert [a.task for a in found.merged] == ["good"]
    assert "Permission denied" in found.refused[0].why


def test_a_norm_that_the_stored_dtype_does_not_hold(tmp_path: Path, inbox: Path) -> None:
    half = initialise(
        [adapter("first", 1)], Dimension(variance=1.0), BuildSettings(), dtype=torch.float16
    )
    path = tmp_path / "half.share"
    commit(path, half, operation=Operation("init"), expected_parent=None)
    bad = plain("bad", 3)
    large = {
        m: replace(u, scaling=1e13) for m, u in bad.updates.items() if isinstance(u, PlainFactors)
    }
    put(inbox, replace(bad, updates=large))
    put(inbox, plain("good", 1))
    found = gather(path, inbox)
    assert [a.task for a in found.merged] == ["good"]
    assert [r.task for r in found.refused] == ["bad"]
    assert not files(inbox)


def test_a_module_that_the_share_model_lacks(store: Path, inbox: Path) -> None:
    found = plain("more", 3)
    updates = {**found.updates, "no.such": found.updates["q"]}
    file = put(inbox, replace(found, updates=updates, fingerprint=None))
    put(inbox, plain("good", 1))
    outcome = gather(store, inbox)
    assert [a.task for a in outcome.merged] == ["good"]
    (refusal,) = outcome.refused
    assert "'no.such'" in refusal.why
    assert "--new-modules" in refusal.remedy
    assert set(load(store).layers) == {"q", "v"}
    (inbox / "quarantine" / file).rename(inbox / file)
    assert [a.task for a in gather(store, inbox, new_modules=True).merged] == ["more"]
    assert set(load(store).layers) == {"q", "v", "no.such"}


def test_a_file_that_cannot_be_moved_stops_no_other(store: Path, inbox: Path) -> None:
    """As in a folder with the sticky bit: two batches, and the first file stays."""
    names = [put(inbox, plain(task, seed)) for seed, task in enumerate("ab", 1)]

    class Sticky(LocalInbox):
        def move(self, name: str, to: str) -> bool:
            if name == sorted(names)[0]:
                raise InboxError(str(inbox / name), "moving failed: Operation not permitted")
            return super().move(name, to)

    with pytest.raises(InboxError, match="not permitted"):
        Gatherer(store, Sticky(inbox), GatherSettings(batch=1)).run()
    assert set(load(store).tasks) == {"first", "a", "b"}
    assert files(inbox) == [sorted(names)[0]]


def test_the_folder_of_a_share_model_is_no_inbox(store: Path) -> None:
    before = sorted(store.rglob("*"))
    for place in (store, store / "objects", store / "new"):
        with pytest.raises(OptionError):
            gather(store, place)
        with pytest.raises(OptionError, match="is a Share model"):
            hand_in(plain("a", 1), place)
    assert sorted(store.rglob("*")) == before


def test_too_large_a_file_is_not_read(store: Path, inbox: Path) -> None:
    """A gigabyte of holes, which take no room on the disk."""
    (inbox / "large.safetensors").touch()
    os.truncate(inbox / "large.safetensors", 2**30 + 1)
    put(inbox, plain("a", 1))
    found = gather(store, inbox)
    assert "1073741825 bytes, more than the 1073741824 it may have" in found.refused[0].why
    assert [a.task for a in found.merged] == ["a"]
    name = found.refused[0].file
    assert re.fullmatch(r"large\.[0-9a-f]{12}\.safetensors", name)
    assert files(inbox / "quarantine") == [name, f"{name}.json"]


def test_a_link_out_of_the_inbox_gives_nothing_away(
    store: Path, inbox: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (inbox / "x.safetensors").symlink_to(tmp_path / "secret")
    gather(store, inbox)
    assert (tmp_path / "secret").read_text() == "secret"
    assert "secret" not in json.dumps([r["why"] for r in reasons(inbox)])


def test_bases_that_were_pruned(store: Path, inbox: Path) -> None:
    old = trained(load(store), "old", 1)
    grow(store, "more", 5)
    prune(store, keep=1)
    put(inbox, old)
    (refusal,) = gather(store, inbox).refused
    assert "version 1, which was pruned" in refusal.why
    assert "--plain" in refusal.remedy


def test_bases_that_are_damaged(store: Path, inbox: Path) -> None:
    """The store's fault: it says so, and the others still come in."""
    put(inbox, trained(load(store), "old", 1))
    put(inbox, plain("good", 2))
    basis = store / checkout(store).manifest.content.basis.file
    grow(store, "more", 5)
    whole = basis.read_bytes()
    basis.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = gather(store, inbox)
    assert [a.task for a in found.merged] == ["good"]
    assert "version 1, which is damaged" in found.refused[0].why
    basis.write_bytes(whole)
    (inbox / "quarantine" / found.refused[0].file).rename(inbox / found.refused[0].file)
    assert [a.task for a in gather(store, inbox).merged] == ["old"]


def test_a_later_version_with_the_same_bases_will_do(store: Path, inbox: Path) -> None:
    old = trained(load(store), "old", 1)
    put(inbox, plain("zero", 3))
    grow(store, "more", 5)
    rollback(store, 1)
    prune(store, keep=1)
    put(inbox, old)
    assert {a.task for a in gather(store, inbox).merged} == {"old", "zero"}


def test_after_a_remedy_it_is_tried_again(store: Path, inbox: Path) -> None:
    name = put(inbox, plain("first", 3))
    gather(store, inbox)
    (inbox / "quarantine" / name).rename(inbox / name)
    found = gather(store, inbox, on_conflict="rename")
    assert [a.task for a in found.merged] == [f"first-{name[13:21]}"]


def test_replace(store: Path, inbox: Path) -> None:
    new = plain("first", 3)
    put(inbox, new)
    put(inbox, plain("other", 4))
    assert len(gather(store, inbox, on_conflict="replace").merged) == 2
    assert errors(store, "first", {m: dense_of(load(store), new, m) for m in SHAPES}) < 1e-5
    assert set(load(store).tasks) == {"first", "other"}


def test_two_of_one_name_in_one_batch(store: Path, inbox: Path) -> None:
    names = sorted([put(inbox, plain("twice", 3)), put(inbox, plain("twice", 4))])
    found = gather(store, inbox)
    assert [a.id for a in found.merged] == [names[0][13:77]]
    assert [r.file for r in found.refused] == [names[1]]
    put(inbox, plain("pair", 3))
    put(inbox, plain("pair", 4))
    assert len(gather(store, inbox, on_conflict="rename").merged) == 2
    assert len([t for t in load(store).tasks if t.startswith("pair")]) == 2


def test_those_that_do_not_fit_each_other(store: Path, inbox: Path) -> None:
    """Each alone would do; a module is new, and they disagree about its shape."""
    for seed, n in ((1, 12), (2, 8)):
        found = plain(f"n{n}", seed)
        update = found.updates["q" if n == 12 else "v"]
        shape = {"new": ModuleShape(n, 10)}
        put(inbox, replace(found, updates={"new": update}, fingerprint=fingerprint(shape)))
    found_all = gather(store, inbox, new_modules=True)
    assert (len(found_all.merged), len(found_all.refused)) == (1, 1)
    assert verify(store).ok


def test_a_zero_update_and_a_cap_and_a_budget(tmp_path: Path) -> None:
    for kind in ({"cap": 3}, {"budget": 4000}, {}):
        folder = tmp_path / str(kind)
        folder.mkdir()
        store, inbox = folder / "s", folder / "inbox"
        start(store, **kind)
        model = load(store)
        zero = trained(model, "zero", 1)
        q = zero.updates["q"]
        assert isinstance(q, Coordinates)
        nothing = replace(q, left=torch.zeros_like(q.left))
        put(inbox, replace(zero, updates={**zero.updates, "q": nothing}))
        put(inbox, trained(model, "new", 2))
        assert len(gather(store, inbox).merged) == 2
        assert verify(store).ok
        if "cap" in kind:
            assert all(max(layer.k) <= 3 for layer in load(store).layers.values())


def test_a_budget_that_leaves_nothing_of_a_task(tmp_path: Path) -> None:
    store, inbox = tmp_path / "s", tmp_path / "inbox"
    start(store, budget=400)
    for i in range(8):
        put(inbox, plain(f"t{i}", i + 3))
    found = gather(store, inbox)
    assert {r.error for r in found.refused} <= {"OptionError"}
    assert len(found.merged) + len(found.refused) == 8
    assert verify(store).ok


def test_a_contribution_does_not_rename_the_base(tmp_path: Path) -> None:
    store, inbox = tmp_path / "s", tmp_path / "inbox"
    start(store)
    before = load(store).base
    put(inbox, plain("a", 1, base=BaseModel("/somewhere/else")))
    put(inbox, plain("b", 2, base=BaseModel(None)))
    assert len(gather(store, inbox).merged) == 2
    assert load(store).base == before == BASE


def test_an_inbox_that_is_not_there_or_is_the_store(store: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such folder"):
        gather(store, tmp_path / "nothing")
    with pytest.raises(OptionError, match="is a Share model"):
        gather(store, store)
    with pytest.raises(StoreNotFoundError):
        gather(tmp_path / "nothing", tmp_path)
    with pytest.raises(OptionError, match="batch"):
        gather(store, tmp_path, batch=0)


def test_hand_in_makes_the_folder(store: Path, tmp_path: Path) -> None:
    found = hand_in(trained(load(store), "a", 1), tmp_path / "new" / "inbox")
    assert (found.task, found.version) == ("a", 1)
    assert files(tmp_path / "new" / "inbox") == [found.file]
    assert (tmp_path / "new" / "inbox" / found.file).stat().st_size == found.bytes
    assert set(ALL) == set(load(store).layers)


def test_what_would_erase_a_task_is_set_aside_where_told_to(tmp_path: Path, inbox: Path) -> None:
    store = tmp_path / "capped.share"
    start(store, cap=2)
    put(inbox, plain("lora", 7, rank=3))
    outcome = gather(store, inbox, max_error=0.05)
    assert not outcome.merged
    assert [(r.task, r.error) for r in outcome.refused] == [("lora", "OptionError")]
    assert "max error 5 %" in reasons(inbox)[0]["what"]
    assert checkout(store).version.number == 1
    put(inbox, plain("lora", 7, rank=3))
    outcome = gather(store, inbox)
    assert [m.task for m in outcome.merged] == ["lora"]
    assert "lora" in {loss.task for loss in outcome.losses}
    with pytest.raises(OptionError, match="max_error"):
        gather(store, inbox, max_error=2.0)
