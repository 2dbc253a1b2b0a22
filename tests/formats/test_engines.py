"""A base model's config.json: where it comes from, and sizes under all their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharespace.errors import AdapterError, CorruptAdapterError, OptionError
from sharespace.formats import engines
from sharespace.formats.engines import BaseConfig, read_base_config
from sharespace.formats.hub import HubId, base_model_id
from sharespace.subspace.adapter import BaseModel


def config(folder: Path, text: str) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(text)
    return str(folder)


def test_a_folder_goes_before_what_the_task_states(tmp_path: Path) -> None:
    named = config(tmp_path / "a", '{"model_type": "qwen2"}')
    stated = config(tmp_path / "b", '{"model_type": "llama"}')
    assert read_base_config(named, BaseModel(stated)).model_type == "qwen2"
    assert read_base_config(None, BaseModel(stated)).model_type == "llama"


def test_sizes() -> None:
    new = BaseConfig("x", {"hidden_size": 12, "num_attention_heads": 3, "num_key_value_heads": 1})
    old = BaseConfig("x", {"n_embd": 12, "n_head": 3})
    assert (new.heads, new.key_heads, new.head_dim) == (3, 1, 4)
    assert (old.heads, old.key_heads, old.head_dim) == (3, 3, 4)
    assert BaseConfig("x", {"head_dim": 7}).head_dim == 7


@pytest.mark.parametrize("value", ["3", 0, -1, True, None, 2.0])
def test_sizes_that_are_none(value: object) -> None:
    broken = BaseConfig("tiny, config.json", {"num_attention_heads": value})
    with pytest.raises(CorruptAdapterError, match="num_attention_heads is"):
        assert broken.heads


def test_what_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match=r"config.json cannot be read.*--base"):
        read_base_config(str(tmp_path / "empty"), None)
    with pytest.raises(CorruptAdapterError, match="not valid JSON"):
        read_base_config(config(tmp_path / "broken", "{"), None)
    with pytest.raises(AdapterError, match="neither a folder nor a Hub id"):
        read_base_config(str(tmp_path / "nothing"), None)
    for nobody in (None, BaseModel()):
        with pytest.raises(OptionError, match="does not state its base"):
            read_base_config(None, nobody)


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("someone/model", None, HubId("someone", "model")),
        ("someone/model", "v1", HubId("someone", "model", "v1")),
        ("someone/model@v2", "v1", HubId("someone", "model", "v2")),
        ("gpt2", "v1", HubId("", "gpt2", "v1")),
        ("a/b/c", None, None),
        ("..", None, None),
    ],
)
def test_hub_ids(name: str, revision: str | None, expected: HubId | None) -> None:
    assert base_model_id(name, revision) == expected
    assert expected is None or expected.repository == name.split("@")[0]


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[HubId] = []
    folder = config(tmp_path / "a", '{"model_type": "gpt2"}')

    def download(hub: HubId) -> Path:
        asked.append(hub)
        return Path(folder) / "config.json"

    monkeypatch.setattr(engines, "download_config", download)
    found = read_base_config(None, BaseModel("gpt2", "v1"))
    assert found.model_type == "gpt2"
    assert asked == [HubId("", "gpt2", "v1")]
