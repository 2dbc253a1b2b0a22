"""Hub ids, read offline through the real huggingface_hub client from a cache made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from sharespace.errors import AdapterError, CorruptAdapterError
from sharespace.formats import read_adapter
from sharespace.formats.hub import FILES, parse_hub_id

COMMIT = "a" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that the client uses, with no connection."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache: Path, repository: str, revision: str) -> Path:
    """The folder of a repository's commit, as the client lays it out."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def fill(folder: Path) -> None:
    key = "base_model.model.a"
    tensors = {f"{key}.lora_A.weight": torch.ones(2, 3), f"{key}.lora_B.weight": torch.ones(3, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))


def test_from_the_cache(cache: Path) -> None:
    fill(cached(cache, "someone/some-lora", "main"))
    adapter = read_adapter("someone/some-lora")
    assert adapter.name == "some-lora"
    assert adapter.provenance.source == "someone/some-lora"
    assert adapter.ranks == {"a": 2}


def test_a_revision(cache: Path) -> None:
    fill(cached(cache, "someone/some-lora", "v1"))
    assert read_adapter("someone/some-lora@v1").provenance.source == "someone/some-lora@v1"
    with pytest.raises(AdapterError, match="someone/some-lora@v2"):
        read_adapter("someone/some-lora@v2")


def test_not_there(cache: Path) -> None:
    with pytest.raises(AdapterError, match="neither a path that exists nor a repository"):
        read_adapter("someone/nothing")
    assert not cache.exists()


def test_no_adapter_in_it(cache: Path) -> None:
    (cached(cache, "someone/model", "main") / "README.md").write_text("no adapter")
    with pytest.raises(CorruptAdapterError, match="no weights file"):
        read_adapter("someone/model")


@pytest.mark.parametrize("name", ["bad..name", "-dash", "double--dash"])
def test_names_that_the_hub_refuses(name: str, cache: Path) -> None:
    with pytest.raises(AdapterError):
        read_adapter(f"someone/{name}")
    assert not cache.exists()


def test_an_existing_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "some-lora").mkdir(parents=True)
    assert parse_hub_id("someone/some-lora") is None
    fill(tmp_path / "someone" / "some-lora")
    assert read_adapter("someone/some-lora").provenance.source == (
        "some-lora/adapter_model.safetensors"
    )


@pytest.mark.parametrize(
    "text", ["one", "a/b/c", "/a/b", "./a", "../a", "a/", "a/b.safetensors", "a b/c", "a/b@"]
)
def test_what_is_no_hub_id(text: str) -> None:
    assert parse_hub_id(text) is None


def test_no_wild_card_is_asked_for() -> None:
    assert not any("*" in name for name in FILES)
