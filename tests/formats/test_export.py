"""Exports: whole or not at all, refused where something is in the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from builders import build, strangers
from sharespace import Share
from sharespace.errors import CorruptAdapterError, OptionError
from sharespace.formats import ExportOptions, PlainLora, plain, read_adapter, write_adapter
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate, ModuleShape


def update(r: int = 2, n: int = 4, d: int = 3, scaling: float = 1.0) -> LayerUpdate:
    return LayerUpdate(torch.randn(n, r), torch.randn(r, d), scaling)


def test_a_learned_task_needs_no_config(tmp_path: Path) -> None:
    base = BaseModel("someone/model", "main")
    assert write_adapter(tmp_path / "x", PlainLora({"a.b": update()}, base=base)) == [
        tmp_path / "x"
    ]
    adapter = read_adapter(tmp_path / "x")
    assert adapter.base == base
    assert adapter.config["target_modules"] == ["a.b"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


def test_the_config_states_the_base_where_nobody_does(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": "someone/model", "revision": "v1"}
    write_adapter(tmp_path / "x", PlainLora({"a.b": update()}, config=config))
    assert read_adapter(tmp_path / "x").base == BaseModel("someone/model", "v1")


def test_a_learned_diffusers_task_needs_its_component(tmp_path: Path) -> None:
    (path,) = write_adapter(
        tmp_path / "x",
        PlainLora({"a.b": update()}),
        ExportOptions(component="transformer"),
        to="diffusers",
    )
    assert list(read_adapter(path).shapes) == ["transformer.a.b"]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    scaling=st.floats(0, 100),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_updates_come_back(
    ranks: list[int], scaling: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    updates = {}
    for i, r in enumerate(ranks):
        u = update(r)
        updates[f"m.{i}"] = LayerUpdate(u.up.to(dtype), u.down.to(dtype), scaling)
    write_adapter(tmp_path / "x", PlainLora(updates), ExportOptions(overwrite=True))
    adapter = read_adapter(tmp_path / "x")
    assert set(adapter.ranks.values()) == {max(ranks)}
    for module, u in updates.items():
        found = adapter.layer(module)
        assert torch.equal(found.down[: u.down.shape[0]], u.down)
        torch.testing.assert_close(found.up @ found.down, u.scaling * u.up @ u.down)


def test_a_convolution_has_its_kernel_again(tmp_path: Path) -> None:
    shape = ModuleShape(4, 12, "conv", (3, 2))
    write_adapter(tmp_path / "x", PlainLora({"a.b": update(d=12)}, shapes={"a.b": shape}))
    assert read_adapter(tmp_path / "x").shapes == {"a.b": shape}


def test_one_tensor_in_two_modules_is_written_twice(tmp_path: Path) -> None:
    u = update()
    head = torch.randn(3)
    kept = {"base_model.model.x": head, "base_model.model.y": head}
    write_adapter(tmp_path / "x", PlainLora({"a.b": u, "a.c": u}, kept=kept))
    assert set(read_adapter(tmp_path / "x").kept) == set(kept)


def test_names_without_a_dot_match_no_other_module(tmp_path: Path) -> None:
    write_adapter(tmp_path / "x", PlainLora({"head": update(), "a.b": update()}))
    targets = json.loads((tmp_path / "x" / "adapter_config.json").read_text())["target_modules"]
    assert targets == r"(?:a\.b|head)"


def test_dtype_of_the_factors(tmp_path: Path) -> None:
    write_adapter(tmp_path / "x", PlainLora({"a.b": update()}), ExportOptions(dtype=torch.bfloat16))
    assert read_adapter(tmp_path / "x").dtype == torch.bfloat16


@pytest.mark.parametrize("to", ["peft", "diffusers"])
def test_bad_options(to: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no adapter to write"):
        write_adapter(tmp_path / "x", PlainLora({}), to=to)
    with pytest.raises(OptionError, match="1 is below 2"):
        write_adapter(tmp_path / "x", PlainLora({"a.b": update()}), ExportOptions(rank=1), to=to)
    kept = {"base_model.model.a.b.lora_A.weight": torch.ones(1)}
    with pytest.raises(OptionError, match="key of a factor"):
        write_adapter(tmp_path / "x", PlainLora({"a.b": update()}, kept=kept), to=to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [{"rank": 0}, {"rank": 2.5}, {"dtype": "float16"}, {"dtype": torch.int8}, {"rank": True}],
)
def test_options_without_a_usable_value(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        ExportOptions(**options)


@pytest.mark.parametrize("to", ["peft", "diffusers"])
def test_nothing_is_left_of_a_failed_write(to: str, tmp_path: Path) -> None:
    broken = LayerUpdate(torch.full((4, 2), float("nan")), torch.ones(2, 3))
    with pytest.raises(CorruptAdapterError, match="NaN"):
        write_adapter(tmp_path / "x", PlainLora({"a.b": broken}), to=to)
    assert not list(tmp_path.iterdir())


def test_a_full_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("mine")
    with pytest.raises(OptionError, match="not empty"):
        write_adapter(tmp_path / "x", PlainLora({"a.b": update()}))
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["mine"]


def test_overwriting_replaces_all_of_it(tmp_path: Path) -> None:
    plain = PlainLora({"a.b": update()})
    write_adapter(tmp_path / "x", plain, to="vllm")
    write_adapter(tmp_path / "x", PlainLora({"a.c": update()}), ExportOptions(overwrite=True))
    assert list(read_adapter(tmp_path / "x").shapes) == ["a.c"]
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [
        ".sharespace-export",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_failed_overwrite_leaves_what_was_there(tmp_path: Path) -> None:
    write_adapter(tmp_path / "x", PlainLora({"a.b": update()}))
    broken = LayerUpdate(torch.full((4, 2), float("inf")), torch.ones(2, 3))
    with pytest.raises(CorruptAdapterError):
        write_adapter(tmp_path / "x", PlainLora({"a.c": broken}), ExportOptions(overwrite=True))
    assert list(read_adapter(tmp_path / "x").shapes) == ["a.b"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    write_adapter(tmp_path / "x", PlainLora({"a.b": update()}))
    assert list(read_adapter(tmp_path / "x").shapes) == ["a.b"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    for path in (tmp_path / "x", tmp_path / "x" / "below"):
        with pytest.raises(OptionError):
            write_adapter(path, PlainLora({"a.b": update()}))
    assert (tmp_path / "x").read_text() == "mine"


def test_the_directory_has_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    write_adapter(tmp_path / "x", PlainLora({"a.b": update()}))
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def kept_of(*keys: str) -> dict[str, Tensor]:
    return {f"base_model.model.{key}": torch.ones(3) for key in keys}


def test_dora_is_stated_only_with_magnitudes(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "use_dora": True}
    write_adapter(
        tmp_path / "with",
        PlainLora({"a.b": update()}, config=config, kept=kept_of("a.b.lora_magnitude_vector")),
    )
    write_adapter(tmp_path / "without", PlainLora({"a.b": update()}, config=config))
    assert read_adapter(tmp_path / "with").config["use_dora"] is True
    assert read_adapter(tmp_path / "without").config["use_dora"] is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_export_of_a_wrong_scale_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    share = Share(build(strangers(2, 24, 20), 6))
    share.export("t0", tmp_path / "right", dtype=dtype)
    scale = {torch.float32: 1 + 1e-4, torch.float16: 1.01, torch.bfloat16: 1.1}[dtype]
    padded = plain.padded

    def scaled(module: str, update: LayerUpdate, *more: Any) -> tuple[Tensor, Tensor]:
        return padded(module, replace(update, scaling=scale * update.scaling), *more)

    monkeypatch.setattr(plain, "padded", scaled)
    with pytest.raises(CorruptAdapterError, match="'m': was written as another update"):
        share.export("t0", tmp_path / "wrong", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["right"]


@pytest.mark.parametrize("named", [None, "/somewhere/gemma"])
def test_an_export_states_the_base_that_its_adapter_stated(
    named: str | None, tmp_path: Path
) -> None:
    """Modules in common do not tell that it is of the others' base model."""
    update = LayerUpdate(torch.randn(8, 2), torch.randn(2, 6))
    known = Adapter.from_updates("known", {"q": update}, base=BaseModel("acme/base"))
    other = Adapter.from_updates("other", {"q": update}, base=BaseModel(named))
    for share in (Share.from_adapters([other, known], k=2), Share.from_adapters([known], k=2)):
        both = share if "other" in share.tasks else share.merge([other])
        folder = tmp_path / "+".join(share.tasks)
        written = {name: both.export(name, folder / name)[0] for name in both.tasks}
        stated = {name: read_adapter(path).base.id for name, path in written.items()}
        assert stated == {"known": "acme/base", "other": named}
    share = Share.from_adapters([known], k=2).merge([other], base="acme/base")
    assert read_adapter(share.export("other", tmp_path / "out")[0]).base.id == "acme/base"


def test_an_export_of_kohya_states_no_base(tmp_path: Path) -> None:
    key = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{key}.lora_down.weight": torch.randn(2, 6), f"{key}.alpha": torch.tensor(2.0)}
    save_file(tensors | {f"{key}.lora_up.weight": torch.randn(8, 2)}, tmp_path / "x.safetensors")
    update = LayerUpdate(torch.randn(8, 2), torch.randn(2, 6))
    known = Adapter.from_updates(
        "known", {"unet.mid_block.attentions.0.proj_in": update}, base=BaseModel("acme/base")
    )
    share = Share.from_adapters([known, read_adapter(tmp_path / "x.safetensors")], k=2)
    assert read_adapter(share.export("x", tmp_path / "out")[0]).base.id is None
