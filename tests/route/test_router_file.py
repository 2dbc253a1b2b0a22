"""Routers on disk: the same bits back, and every damage named."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sharespace.errors import (
    CorruptStoreError,
    OptionError,
    SchemaVersionError,
    StoreError,
    StoreNotFoundError,
)
from sharespace.route import Router, Statistics

NAMES = ("sst2", "../etc", "名 \n")


@pytest.fixture
def router() -> Router:
    made = Router(shrinkage=0.1, margin=-1.25)
    for i, name in enumerate(NAMES):
        x = torch.randn(20, 7, generator=torch.Generator().manual_seed(i))
        made = made.with_task(name, Statistics.from_features(x + i))
    return made


def test_comes_back_bit_for_bit(router: Router, tmp_path: Path) -> None:
    path = tmp_path / "router.safetensors"
    router.save(path)
    found = Router.load(path)
    x = torch.randn(9, 7)
    assert tuple(found.tasks) == NAMES
    assert (found.shrinkage, found.margin) == (router.shrinkage, router.margin)
    for name in NAMES:
        assert found.tasks[name].count == router.tasks[name].count
        assert torch.equal(found.tasks[name].mean, router.tasks[name].mean)
        assert torch.equal(found.tasks[name].scatter, router.tasks[name].scatter)
    assert torch.equal(found.route(x).scores, router.route(x).scores)
    assert found.route(x).tasks == router.route(x).tasks


def test_no_margin_stays_none_and_the_last_save_wins(router: Router, tmp_path: Path) -> None:
    path = tmp_path / "router.safetensors"
    router.save(path)
    Router(router.tasks).without_task("sst2").save(path)
    assert Router.load(path).margin is None
    assert "sst2" not in Router.load(path).tasks
    assert [p.name for p in tmp_path.iterdir()] == ["router.safetensors"]


def test_others_may_read_the_file(router: Router, tmp_path: Path) -> None:
    router.save(tmp_path / "r")
    assert stat.S_IMODE((tmp_path / "r").stat().st_mode) & 0o044


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _text(path: Path) -> None:
    path.write_text("not a router")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _rewritten(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
        change(metadata)
        save_file(load_file(path), path, metadata=metadata)

    return damage


def _missing_tensor(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"means": load_file(path)["means"]}, path, metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_truncated, "safetensors"),
        (_flipped, "sha256"),
        (_text, "safetensors"),
        (_empty, "safetensors"),
        (_missing_tensor, "sha256"),
        (_rewritten(lambda m: m.pop("format")), "not a router"),
        (_rewritten(lambda m: m.pop("sha256")), "sha256"),
        (_rewritten(lambda m: m.update(router=m["router"].replace("20", "21"))), "sha256"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_is_named(
    router: Router, tmp_path: Path, damage: Callable[[Path], None], why: str
) -> None:
    path = tmp_path / "router.safetensors"
    router.save(path)
    damage(path)
    with pytest.raises(CorruptStoreError, match=why) as caught:
        Router.load(path)
    assert str(path) in str(caught.value)


def _sealed(text: str) -> Callable[[Path], None]:
    """Another router's JSON, with the sum that the format wants for it."""

    def damage(path: Path) -> None:
        tensors = load_file(path)
        digest = hashlib.sha256(text.encode())
        for name in ("means", "scatters"):
            digest.update(tensors[name].numpy().tobytes())
        _rewritten(lambda m: m.update(router=text, sha256=digest.hexdigest()))(path)

    return damage


def test_a_header_that_does_not_fit_is_refused_although_its_sum_is_right(
    router: Router, tmp_path: Path
) -> None:
    path = tmp_path / "router.safetensors"
    router.save(path)
    with safe_open(path, framework="pt") as file:
        whole = file.metadata()["router"]
    _sealed(whole)(path)
    assert tuple(Router.load(path).tasks) == NAMES
    one_task = '{"tasks": ["a"], "counts": [1], "shrinkage": 1}'
    twice = whole.replace('"counts"', '"tasks": [], "counts"')
    for text in ("{}", "[]", "no json", one_task, twice):
        _sealed(text)(path)
        with pytest.raises(CorruptStoreError, match="does not fit"):
            Router.load(path)


def test_a_newer_version_is_refused(router: Router, tmp_path: Path) -> None:
    path = tmp_path / "router.safetensors"
    router.save(path)
    _rewritten(lambda m: m.update(version="2"))(path)
    with pytest.raises(SchemaVersionError, match="Upgrade"):
        Router.load(path)


def test_paths_that_do_not_work_are_named(router: Router, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="nothing"):
        Router.load(tmp_path / "nothing")
    with pytest.raises(StoreError, match="cannot be"):
        Router.load(tmp_path)
    with pytest.raises(StoreError, match="written"):
        router.save(tmp_path / "no folder" / "router")
    with pytest.raises(OptionError, match="no task"):
        Router().save(tmp_path / "empty")
    assert not list(tmp_path.iterdir())
