"""Adapters for vLLM: names, folders, content; vLLM itself is run by ``make vllm``."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve.mixed.test_batch import llama, shared, with_heads
from sharespace import Share
from sharespace.errors import (
    MismatchError,
    OptionError,
    TaskNotFoundError,
    UnsupportedAdapterError,
)
from sharespace.formats import read_adapter
from sharespace.serve import vllm
from sharespace.serve.vllm import check_base_files, parse, write
from sharespace.subspace.base_weights import base_samples


@pytest.fixture
def texts() -> Share:
    """Tasks of a tiny Llama."""
    return shared(llama(), "lm_head")


@pytest.fixture
def store(texts: Share, tmp_path: Path) -> Path:
    texts.save(tmp_path / "s.share")
    return tmp_path / "s.share"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", ("a", None)),
        ("a@3", ("a", 3)),
        ("me@home", ("me@home", None)),
        ("me@home@12", ("me@home", 12)),
        ("@3", ("@3", None)),
        ("a@-3", ("a@-3", None)),
    ],
)
def test_names(name: str, expected: tuple[str, int | None]) -> None:
    assert parse(name) == expected


def test_what_is_written_is_the_task(store: Path, texts: Share, tmp_path: Path) -> None:
    written = write(store, "a", tmp_path / "cache")
    assert written.version == 1
    adapter = read_adapter(written.path, "a")
    for module, update in texts.updates("a").items():
        again = adapter.layer(module)
        assert again.scaling == 1
        torch.testing.assert_close(again.up @ again.down, update.up @ update.down)


def test_the_same_content_is_written_once(store: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = write(store, "a", cache)
    before = (first.path / "adapter_model.safetensors").stat().st_mtime_ns
    assert write(store, "a@1", cache) == first
    assert (first.path / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert write(store, "b", cache).number != first.number
    assert len(list(cache.iterdir())) == 2


def test_a_version_stays_what_it_was(store: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    old = write(store, "a", cache)
    changed = Share.load(store).remove("a").rename("b", "a")
    changed.save()
    new = write(store, "a", cache)
    assert new.path != old.path
    assert write(store, "a@1", cache) == old
    assert write(store, "a@2", cache) == new
    assert old.path.is_dir()


def test_a_task_whose_name_looks_like_a_version(store: Path, tmp_path: Path) -> None:
    Share.load(store).rename("c", "a@1").save()
    cache = tmp_path / "cache"
    assert write(store, "a@1", cache).path != write(store, "a", cache).path


def test_refusals(store: Path, texts: Share, tmp_path: Path) -> None:
    with pytest.raises(TaskNotFoundError):
        write(store, "../x", tmp_path / "cache")
    with_heads(texts, {"b": {"lm_head.weight": torch.zeros(40, 16)}}).save(
        tmp_path / "labels.share"
    )
    with pytest.raises(UnsupportedAdapterError, match="heads"):
        write(tmp_path / "labels.share", "b", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


class _Registry:
    found: dict[str, Any]

    @classmethod
    def register_resolver(cls, name: str, resolver: Any) -> None:
        cls.found = {name: resolver}


def test_the_plugin(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With vLLM's two modules replaced by stand-ins."""
    request = SimpleNamespace(LoRARequest=lambda *values: values)
    resolver = SimpleNamespace(LoRAResolver=object, LoRAResolverRegistry=_Registry)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.lora", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.lora.resolver", resolver)
    monkeypatch.setitem(sys.modules, "vllm.lora.request", request)
    monkeypatch.delenv(vllm.SHARE, raising=False)
    vllm.register()
    assert not hasattr(_Registry, "found")
    monkeypatch.setenv(vllm.SHARE, str(tmp_path / "nothing"))
    with pytest.raises(OptionError, match="no such folder"):
        vllm.register()
    monkeypatch.setenv(vllm.SHARE, str(store))
    monkeypatch.setenv(vllm.CACHE, str(tmp_path / "cache"))
    vllm.register()
    found = _Registry.found["sharespace"]
    name, number, path = asyncio.run(found.resolve_lora("base", "a@1"))
    assert (name, Path(path).parent) == ("a@1", tmp_path / "cache")
    assert 0 < number < 2**31
    assert asyncio.run(found.resolve_lora("base", "nobody")) is None
    assert asyncio.run(found.resolve_lora("base", "a@99")) is None


def test_another_base_model_is_told_by_its_files(
    texts: Share, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = llama()
    names = dict(model.named_modules())
    samples = base_samples({module: names[module] for module in texts.model.layers})
    share = Share(replace(texts.model, base_samples=samples))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "same")
    with torch.no_grad():
        names["model.layers.1.mlp.up_proj"].weight.mul_(1.1)
    model.save_pretrained(tmp_path / "other")
    check_base_files(share, str(tmp_path / "same"))
    assert not caplog.records
    with pytest.raises(MismatchError, match=r"up_proj.*other weights"):
        check_base_files(share, str(tmp_path / "other"))
    check_base_files(share, "somebody/not-here")
    check_base_files(texts, str(tmp_path / "same"))
    count = len(texts.model.layers)
    assert all(f"not known in {count} of {count}" in r.getMessage() for r in caplog.records)
    assert len(caplog.records) == 2
