"""Tokenizer, chat template and labels of an adapter's folder: kept with the task, given back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sharespace import Share
from sharespace.errors import CorruptStoreError
from sharespace.formats import ExportOptions, PlainLora, read_adapter, write_adapter
from sharespace.gather import gather, submit
from sharespace.store import checkout, load, verify
from sharespace.subspace.adapter import LayerUpdate
from store.reseal import replace_object

COMPANIONS = {
    "tokenizer.json": b'{"version": "1.0", "added_tokens": [{"content": "<new>"}]}',
    "tokenizer_config.json": b"{}\n",
    "special_tokens_map.json": b"",
    "added_tokens.json": b'{"<new>": 300}',
    "chat_template.jinja": "{{ messages }} — ✓\r\n".encode(),
    "tokenizer.model": bytes(range(256)) * 3,
    "merges.txt": b"#version: 0.2\n",
    "generation_config.json": b'{"eos_token_id": [2, 7]}',
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
}
NOT_THE_ADAPTERS = {
    "README.md": b"# card",
    "training_args.bin": b"\x80",
    "trainer_state.json": b"{}",
    ".hidden.jinja": b"",
}


def folder(path: Path, seed: int = 0, labels: tuple[str, ...] = ()) -> Path:
    """An adapter as a trainer leaves it."""
    path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for name, data in {**COMPANIONS, **NOT_THE_ADAPTERS}.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(data)
    save_file(
        {
            "base_model.model.q.lora_A.weight": torch.randn(2, 6, generator=generator),
            "base_model.model.q.lora_B.weight": torch.randn(5, 2, generator=generator),
            "base_model.model.score.weight": torch.randn(2, 5, generator=generator),
        },
        path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q"]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    if labels:
        id2label = {str(i): label for i, label in enumerate(labels)}
        (path / "config.json").write_text(json.dumps({"id2label": id2label}))
    return path


def companions(path: Path) -> dict[str, bytes]:
    """Name -> bytes of all files in a folder but the adapter itself."""
    own = ("adapter_model.safetensors", "adapter_config.json", ".sharespace-export")
    found = {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}
    return {name: data for name, data in found.items() if name not in own}


def test_they_come_back_by_export(tmp_path: Path) -> None:
    first = folder(tmp_path / "alpha", 0, ("no", "yes"))
    share = Share.from_adapters([first, folder(tmp_path / "beta", 1)], k=2)
    share.save(tmp_path / "s")
    shutil.rmtree(first)
    stored = Share.load(tmp_path / "s").rename("alpha", "gamma")
    stored.save()
    assert stored.task("gamma").labels == ("no", "yes")
    assert stored.task("beta").labels == ()
    for name in ("gamma", "beta"):
        stored.export(name, tmp_path / "out" / name)
        stored.export(name, tmp_path / "out" / name, overwrite=True)
        assert companions(tmp_path / "out" / name) == COMPANIONS
    # An export is an adapter as good as the one that it was made from.
    assert read_adapter(tmp_path / "out" / "gamma").labels == ("no", "yes")
    assert dict(read_adapter(tmp_path / "out" / "gamma").config) == {
        **read_adapter(tmp_path / "out" / "beta").config,
    }
    content = checkout(tmp_path / "s").manifest.content
    assert content.schema_version == 3
    assert content.tasks[0].files == content.tasks[1].files  # one object for both
    assert verify(tmp_path / "s", all_versions=True).ok


@pytest.mark.parametrize("to", ["kohya", "diffusers", "gguf"])
def test_formats_without_a_place_for_them_have_them_beside(to: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "gpt2", "n_head": 2, "n_layer": 1, "n_embd": 4}'
    )
    module = "transformer.h.0.mlp.c_fc" if to == "gguf" else "mid_block.attentions.0.proj_in"
    update = LayerUpdate(torch.randn(8, 2), torch.randn(2, 4))
    files = {"tokenizer.json": torch.tensor(list(b"{}"), dtype=torch.uint8)}
    plain = PlainLora({module: update}, files=files)
    options = ExportOptions(base=str(tmp_path))
    (written,) = write_adapter(tmp_path / "out", plain, options, to=to)
    assert (written.parent / "tokenizer.json").read_bytes() == b"{}"


def test_they_survive_every_merge(tmp_path: Path) -> None:
    one = Share.from_adapters([folder(tmp_path / "a", 0, ("x", "y"))], k=2)
    two = Share.from_adapters([folder(tmp_path / "b", 1, ("v", "w"))], k=2)
    cut = one.merge([folder(tmp_path / "c", 2)], cap=1)
    budget = Share.from_adapters([tmp_path / "a", tmp_path / "b"], budget=300)
    for share in (one.union(two), cut, budget.merge([tmp_path / "c"])):
        for name in share.tasks:
            task = share.task(name)
            assert {n: t.numpy().tobytes() for n, t in task.files.items()} == COMPANIONS
            assert task.labels == {"a": ("x", "y"), "b": ("v", "w"), "c": ()}[name]


def test_a_contribution_carries_them(tmp_path: Path) -> None:
    Share.from_adapters([folder(tmp_path / "a")], k=2).save(tmp_path / "s")
    submit(folder(tmp_path / "b", 1, ("no", "yes")), tmp_path / "inbox")
    gather(tmp_path / "s", tmp_path / "inbox")
    gathered = Share.load(tmp_path / "s")
    assert gathered.task("b").labels == ("no", "yes")
    gathered.export("b", tmp_path / "out")
    assert companions(tmp_path / "out") == COMPANIONS


def test_a_pipe_and_a_link_of_that_name(tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    (path / "vocab.txt").symlink_to(path / "merges.txt")  # as in the cache of the Hub
    os.mkfifo(path / "vocab.json")
    files = read_adapter(path).files
    assert set(files) == {*COMPANIONS, "vocab.txt"}
    assert files["vocab.txt"].numpy().tobytes() == COMPANIONS["merges.txt"]


@pytest.mark.parametrize("name", ["../x.jinja", "adapter_config.json", "a/b.jinja", ".x.jinja"])
def test_a_forged_name_leads_nowhere(tmp_path: Path, name: str) -> None:
    Share.from_adapters([folder(tmp_path / "a")], k=2).save(tmp_path / "s")
    ref = checkout(tmp_path / "s").manifest.content.tasks[0].files
    assert ref is not None
    forged = torch.tensor([1], dtype=torch.uint8)
    replace_object(tmp_path / "s", ref, lambda tensors: tensors.update({name: forged}))
    with pytest.raises(CorruptStoreError, match="not the bytes of a file"):
        list(load(tmp_path / "s").tasks["a"].files)
    assert [f.status for f in verify(tmp_path / "s").damaged] == ["misfit"]
    with pytest.raises(CorruptStoreError):
        Share.load(tmp_path / "s").export("a", tmp_path / "out")
    assert not (tmp_path / "out").exists()
