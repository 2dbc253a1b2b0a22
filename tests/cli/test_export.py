"""``export --to``: every form through the command line, loaded by what it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cli.conftest import Ran
from sharespace import read_adapter
from sharespace.formats import FORMATS, write_adapter
from support_export import dense, llama, lora_of, saved_config

Run = Callable[..., Ran]
WORDS = ("q_proj", "v_proj", "up_proj")


WRITTEN = sorted(name for name, known in FORMATS.items() if known.write is not None)
"""Formats that a task can be exported to; adapters of mlx-lm are only read."""


@pytest.fixture
def share(run: Run, tmp_path: Path) -> Path:
    """A Share model of two tasks of a tiny Llama; nothing is lost in it."""
    for seed, name in enumerate(("ink", "oil")):
        lora = lora_of(llama(), WORDS, ranks=(2 + seed, 3))
        write_adapter(tmp_path / "adapters" / name, lora)
    out = tmp_path / "styles.share"
    assert run("init", out, f"{tmp_path}/adapters/*", "--variance", 1).code == 0
    return out


def expected() -> dict[str, torch.Tensor]:
    return {m: dense(u) for m, u in lora_of(llama(), WORDS, ranks=(2, 3)).updates.items()}


@pytest.mark.parametrize("to", ["peft", "vllm"])
def test_folders_of_peft(to: str, run: Run, share: Path, tmp_path: Path) -> None:
    ran = run("export", share, "ink", tmp_path / "x", "--to", to, "--rank", 9)
    assert ran.code == 0
    assert ("Start the server with --enable-lora --max-lora-rank 16" in ran.out) == (to == "vllm")
    found = read_adapter(tmp_path / "x")
    assert set(found.ranks.values()) == {9}
    for module, update in expected().items():
        torch.testing.assert_close(dense(found.layer(module)), update, atol=1e-5, rtol=1e-4)


def test_sglang_gets_what_it_stacks(run: Run, share: Path, tmp_path: Path) -> None:
    ran = run("export", share, "ink", tmp_path / "x", "--to", "sglang", "--json")
    assert ran.json["server_options"] == ["--enable-lora", "--max-lora-rank", "3"]
    tensors = load_file(tmp_path / "x" / "adapter_model.safetensors")
    words = {key.split(".")[-3] for key in tensors}
    assert words == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    k = "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"
    assert tensors[k].shape == (16, 3)
    assert not tensors[k].any()


def test_gguf_of_the_base_that_is_named(run: Run, share: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    base = saved_config(llama(), tmp_path / "base")
    options = ("--to", "gguf", "--base", base, "--dtype", "float16")
    ran = run("export", share, "ink", tmp_path / "x", *options)
    assert ran.code == 0, ran.err
    assert f"--lora {tmp_path}/x/x.gguf" in ran.out.replace("\n", "")
    names = {t.name for t in gguf.GGUFReader(tmp_path / "x" / "x.gguf").tensors}
    assert "blk.1.attn_q.weight.lora_b" in names
    assert len(names) == 2 * 2 * len(WORDS)


def test_gguf_needs_the_base(
    run: Run, share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharespace.formats.engines.download_config", no_hub)
    ran = run("export", share, "ink", tmp_path / "x", "--to", "gguf")
    assert ran.code == 2
    assert "tiny/base" in ran.err
    assert "--base" in ran.err
    assert not (tmp_path / "x").exists()


def no_hub(hub: object) -> Path:
    from sharespace.errors import AdapterError

    raise AdapterError(str(hub), "no connection")


def test_kohya_of_a_language_model(run: Run, share: Path, tmp_path: Path) -> None:
    ran = run("export", share, "ink", tmp_path / "x", "--to", "kohya")
    assert ran.code == 2
    assert "they have no name in kohya's form" in " ".join(ran.err.split())


def test_unknown_forms(run: Run, share: Path, tmp_path: Path) -> None:
    ran = run("export", share, "ink", tmp_path / "x", "--to", "onnx")
    assert ran.code == 2
    for name in WRITTEN:
        assert name in ran.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("to", WRITTEN)
def test_a_full_folder_is_left_alone(to: str, run: Run, share: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("mine")
    base = saved_config(llama(), tmp_path / "base")
    ran = run("export", share, "ink", tmp_path / "x", "--to", to, "--base", base)
    assert ran.code == 2
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["mine"]
    if to != "kohya":
        assert "not empty" in ran.err
        options = ("--to", to, "--base", base, "--overwrite")
        ran = run("export", share, "ink", tmp_path / "x", *options)
        assert ran.code == 2
        assert "only an earlier export is overwritten" in " ".join(ran.err.split())
        assert (tmp_path / "x" / "mine").read_text() == "mine"
        for _ in range(2):
            ran = run("export", share, "ink", tmp_path / "y", *options)
            assert ran.code == 0, ran.err


def test_the_share_model_itself_is_no_place_for_an_export(
    run: Run, share: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(share.name)
    before = {p: p.read_bytes() for p in share.rglob("*") if p.is_file()}
    for out in (share, share / "objects", share / "new", tmp_path / "link", tmp_path / "link/new"):
        ran = run("export", share, "ink", out, "--overwrite")
        assert ran.code == 2, out
        assert len(ran.err.splitlines()) == 1
    ran = run("report", share, "-o", share / "share.json", "--overwrite")
    assert ran.code == 2
    assert {p: p.read_bytes() for p in share.rglob("*") if p.is_file()} == before
    assert run("verify", share).code == 0


def test_a_task_with_a_head(run: Run, adapters: Path, tmp_path: Path) -> None:
    run("init", tmp_path / "s", adapters / "rte")
    for to in ("vllm", "sglang", "gguf", "kohya"):
        ran = run("export", tmp_path / "s", "rte", tmp_path / "x", "--to", to)
        assert ran.code == 2
        assert "classifier" in ran.err or "kohya" in ran.err
    assert not (tmp_path / "x").exists()
    config = json.loads((adapters / "rte" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier"]


def test_the_current_directory_is_refused(
    run: Run, share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ran = run("export", share, "ink", ".", "--to", "vllm")
    assert ran.code == 2
    assert "the current directory" in ran.err
    assert not any((tmp_path / "here").iterdir())
