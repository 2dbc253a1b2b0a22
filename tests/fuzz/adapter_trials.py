"""Adapters of every dialect, changed: each is taken whole, or refused in one line.

Whatever an adapter is, a Share model that was there before stays as it was where it is refused, and
verifies where it is taken; what is exported then can be read, and holds only finite numbers.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fuzz.mutations import (
    HOSTILE,
    Tensors,
    as_text,
    encoded,
    mutated_bytes,
    mutated_file,
    mutated_json,
    mutated_tensors,
)
from fuzz.trials import BrokenLawError, command
from sharespace.formats import export_names, read_adapter
from sharespace.store import checkout, verify

_Q, _V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
_UNET = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"

FIELDS = (
    *("peft_type", "task_type", "r", "lora_alpha", "target_modules", "exclude_modules", "bias"),
    *("base_model_name_or_path", "revision", "use_rslora", "use_dora", "fan_in_fan_out"),
    *("modules_to_save", "init_lora_weights", "rank_pattern", "alpha_pattern", "auto_mapping"),
    *("layers_to_transform", "layers_pattern", "layer_replication", "target_parameters"),
    *("alora_invocation_tokens", "trainable_token_indices", "lora_bias", "use_qalora", "future"),
)


@dataclass(frozen=True)
class Sample:
    """A good adapter: what its folder holds."""

    weights: str
    """Name of the file of tensors."""
    tensors: Tensors
    config: dict[str, Any] = field(default_factory=dict)
    """Of ``adapter_config.json``; empty: there is none."""
    metadata: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """What lies beside them."""

    def write(self, folder: Path, weights: bytes | None = None) -> Path:
        """The folder, with other bytes for the weights where they are given."""
        folder.mkdir(parents=True)
        if weights is None:
            save_file(self.tensors, folder / self.weights, metadata=self.metadata)
        else:
            (folder / self.weights).write_bytes(weights)
        if self.config:
            (folder / "adapter_config.json").write_text(json.dumps(self.config))
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder


def _gauss(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _pair(key: str, seed: int, n: int = 12, d: int = 10, r: int = 2) -> Tensors:
    names = f"{key}.lora_A.weight", f"{key}.lora_B.weight"
    return {names[0]: _gauss(seed, r, d), names[1]: _gauss(seed + 1, n, r)}


def _kohya(key: str, seed: int, n: int = 12, d: int = 10) -> Tensors:
    return {
        f"{key}.lora_down.weight": _gauss(seed, 2, d),
        f"{key}.lora_up.weight": _gauss(seed + 1, n, 2),
        f"{key}.alpha": torch.tensor(1.0),
    }


def _peft(seed: int, **config: Any) -> Sample:
    prefix = "base_model.model."
    tensors = _pair(prefix + _Q, seed) | _pair(prefix + _V, seed + 2, 8, 10)
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    stated = {"base_model_name_or_path": "tiny/base", "task_type": "CAUSAL_LM"}
    return Sample("adapter_model.safetensors", tensors, fields | stated | config)


@cache
def samples() -> tuple[Sample, ...]:
    """One or more of every dialect."""
    prefix = "base_model.model."
    plain = _peft(1)
    head = {f"{prefix}score.weight": _gauss(9, 3, 12)}
    embedding = {
        f"{prefix}model.embed_tokens.lora_embedding_A": _gauss(10, 2, 20),
        f"{prefix}model.embed_tokens.lora_embedding_B": _gauss(11, 10, 2),
    }
    magnitudes = {f"{prefix}{_Q}.lora_magnitude_vector.weight": _gauss(12, 12).abs()}
    convolution = {
        f"{prefix}conv.lora_A.weight": _gauss(13, 2, 4, 3, 3),
        f"{prefix}conv.lora_B.weight": _gauss(14, 6, 2, 1, 1),
    }
    experts = {
        f"{prefix}mlp.experts.w1.lora_A.weight": _gauss(15, 1, 2, 10),
        f"{prefix}mlp.experts.w1.lora_B.weight": _gauss(16, 4, 12, 2),
    }
    tokenizer = {"tokenizer_config.json": b'{"a": 1}', "chat_template.jinja": b"{{ x }}"}
    weights = "adapter_model.safetensors"
    return (
        plain,
        Sample(weights, plain.tensors, plain.config, {"format": "pt"}, tokenizer),
        Sample(weights, plain.tensors | head, {**_peft(1).config, "modules_to_save": ["score"]}),
        Sample(weights, plain.tensors | embedding, plain.config),
        Sample(weights, plain.tensors | magnitudes, {**_peft(1).config, "use_dora": True}),
        Sample(weights, plain.tensors | convolution, plain.config),
        Sample(weights, plain.tensors | experts, {**_peft(1).config, "target_modules": "x.*"}),
        _peft(1, rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 8}, use_rslora=True),
        Sample(
            "pytorch_lora_weights.safetensors",
            _pair(f"unet.{_UNET}", 20) | _pair("text_encoder.text_model.layers.0.q_proj", 22),
            {},
            {"lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": 2}'},
        ),
        Sample(
            "sd.safetensors",
            _kohya("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 30)
            | _kohya("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 33),
            {},
            {"ss_network_dim": "2", "ss_sd_model_name": "x"},
        ),
        Sample(
            "xl.safetensors",
            _kohya("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 40)
            | _kohya("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 43),
        ),
        Sample(
            "flux.safetensors",
            _kohya("lora_unet_double_blocks_0_img_attn_qkv", 50, 36, 12)
            | _kohya("lora_unet_single_blocks_0_linear1", 53, 84, 12),
        ),
        Sample(
            "adapters.safetensors",
            {f"{_Q}.lora_a": _gauss(60, 10, 2), f"{_Q}.lora_b": _gauss(61, 2, 12)},
            {
                "fine_tune_type": "lora",
                "model": "tiny/base",
                "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0},
            },
        ),
    )


def _mutated(draw: random.Random, folder: Path) -> Path:
    """A sample with one to five changes; the folder, or the file in it."""
    sample = draw.choice(samples())
    weights = mutated_file(draw, sample.tensors, sample.metadata)
    sample.write(folder, weights)
    path = folder / "adapter_config.json"
    if sample.config and draw.random() < 0.4:
        config: Any = sample.config
        for _ in range(draw.choice([1, 1, 2, 4])):
            config = mutated_json(draw, config, FIELDS)
        path.write_bytes(encoded(draw, as_text(config)))
    if path.exists() and draw.random() < 0.08:
        path.write_bytes(mutated_bytes(draw, path.read_bytes()))
    if draw.random() < 0.05:
        _misplace(draw, folder, folder / sample.weights)
    for name in sample.files if draw.random() < 0.2 else ():
        (folder / name).write_bytes(draw.randbytes(draw.choice([0, 10, 3000])))
    if draw.random() < 0.05:
        _sharded(draw, folder, sample)
    return folder if draw.random() < 0.8 else folder / sample.weights


def _misplace(draw: random.Random, folder: Path, weights: Path) -> None:
    """The weights are gone, under another name, a link, a pipe or a folder."""
    how = draw.choice(["gone", "name", "link", "circle", "folder", "pipe"])
    if how == "name":
        weights.rename(folder / draw.choice(["model.bin", "x.safetensors", "adapter_model.pt"]))
        return
    weights.unlink()
    if how == "link":
        weights.symlink_to("nowhere")
    elif how == "circle":
        weights.symlink_to(weights.name)
    elif how == "folder":
        weights.mkdir()
    elif how == "pipe":
        os.mkfifo(weights)


def _sharded(draw: random.Random, folder: Path, sample: Sample) -> None:
    """An index beside the weights, or in their place, that says something of them."""
    places: Any = dict.fromkeys(sample.tensors, sample.weights)
    index = mutated_json(draw, {"metadata": {}, "weight_map": places})
    name = "adapter_model.safetensors.index.json"
    (folder / name).write_bytes(encoded(draw, as_text(index)))


@cache
def good_store(folder: Path) -> Path:
    """A store of one good task, made once a folder."""
    path = folder / "good.share"
    adapter = _peft(70).write(folder / "good")
    command("init", path, adapter)
    return path


def adapter_trial(draw: random.Random, folder: Path) -> str:
    """One changed adapter in the formats of safetensors."""
    return _through_a_door(draw, folder, _mutated(draw, folder / "bad"))


def _through_a_door(draw: random.Random, folder: Path, adapter: Path) -> str:
    verb = draw.choice(["init", "init", "beside", "merge", "merge", "plan"])
    name = draw.choice(["bad", "bad", "bad", "a\x1b[31mb", "x" * 300, "\n", "é/..", "bad@2"])
    named = f"{name}={adapter}" if draw.random() < 0.3 else str(adapter)
    store = folder / "s.share"
    if verb == "plan":
        return _word(command("plan", named).code)
    if verb == "merge":
        shutil.copytree(good_store(folder.parent), store)
    before = (store / "share.json").read_bytes() if verb == "merge" else None
    beside = [_peft(70).write(folder / "good")] if verb == "beside" else []
    more = draw.choice([[], [], ["--k", 2], ["--budget", 3000]]) if verb != "merge" else []
    words = ["merge"] if verb == "merge" else ["init"]
    code = command(*words, store, *beside, named, *more).code
    if code:
        _check_untouched(store, before)
        return "refused"
    _check_taken(draw, store, folder)
    return "taken"


def _word(code: int) -> str:
    return "refused" if code else "taken"


def _check_untouched(store: Path, before: bytes | None) -> None:
    if before is None and store.exists():
        raise BrokenLawError(
            f"init was refused, and left {sorted(p.name for p in store.iterdir())}"
        )
    if before is not None and (store / "share.json").read_bytes() != before:
        raise BrokenLawError("merge was refused, and the store has another version")


def _check_taken(draw: random.Random, store: Path, folder: Path) -> None:
    verification = verify(store, all_versions=True)
    if not verification.ok:
        raise BrokenLawError(f"taken, and the store is damaged: {verification.damaged[:2]}")
    command("info", store, "--layers")
    command("fidelity", store)
    for task in checkout(store).model.tasks:
        out = folder / f"out-{draw.randrange(10**6)}"
        to = draw.choice(["peft", "peft", *export_names()])
        if command("export", store, "--to", to, "--", task, out).code:
            if out.exists():
                raise BrokenLawError(f"export to {to} was refused, and left {out.name}")
        elif to == "peft":
            _check_finite(out)


def _check_finite(out: Path) -> None:
    folders = [path.parent for path in out.rglob("adapter_config.json")]
    for folder in folders:
        adapter = read_adapter(folder)
        for module in adapter.shapes:
            update = adapter.layer(module)
            if not (update.up.isfinite().all() and update.down.isfinite().all()):
                raise BrokenLawError(f"the export of {module} is not finite")


class _Call:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def _attack(draw: random.Random, marker: Path) -> bytes:
    """A pickle that would make a file if it ran, as a bare one and in an archive."""
    value: Any = _Call(Path.touch, marker)
    value = draw.choice([value, {"a": value}, [value, torch.ones(2)], {value: 1}])
    if draw.random() < 0.4:
        return pickle.dumps(value, protocol=draw.choice([0, 2, 4]))
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=draw.random() < 0.5)
    return buffer.getvalue()


def _deep(draw: random.Random) -> bytes:
    """A pickle of nested lists, or one of opcodes at random."""
    if draw.random() < 0.5:
        return b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    return b"\x80\x02" + draw.randbytes(200) + b"."


def _strange(draw: random.Random, tensors: Tensors) -> dict[str, Any]:
    """Tensors of strides, devices and kinds that no adapter has, and values that are none."""
    changed: dict[str, Any] = dict(tensors)
    key = draw.choice(sorted(changed))
    shape = changed[key].shape
    strange: list[Callable[[], Any]] = [
        lambda: torch.zeros(1).expand(2, 10**10),
        lambda: torch.zeros(1).expand(shape),
        lambda: torch.empty(shape, device="meta"),
        lambda: changed[key].to_sparse(),
        lambda: torch.quantize_per_tensor(changed[key], 0.1, 0, torch.qint8),
        lambda: torch.nn.Parameter(changed[key]),
        lambda: changed[key].t() if changed[key].ndim == 2 else changed[key],
        lambda: torch.zeros(100, 100)[:2, :10],
        lambda: changed[key] + 1j,
        lambda: [changed[key]],
        lambda: draw.choice(HOSTILE[:20]),
        lambda: {"nested": changed[key]},
    ]
    changed[key] = draw.choice(strange)()
    return changed


def _bin_bytes(draw: random.Random, tensors: Tensors, marker: Path) -> bytes:
    how = draw.choice(["attack", "deep", "strange", "strange", "bytes", "bytes", "zip", "wrapped"])
    if how == "attack":
        return _attack(draw, marker)
    if how == "deep":
        return _deep(draw)
    value: Any = mutated_tensors(draw, tensors) if draw.random() < 0.4 else tensors
    if how == "strange":
        value = _strange(draw, tensors)
    if how == "wrapped":
        value = draw.choice([{"state_dict": value}, [value], None, 3, {1: 2}, {}, "x"])
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=draw.random() < 0.7)
    data = buffer.getvalue()
    if how == "zip" and data[:2] == b"PK":
        return _other_archive(draw, data)
    return mutated_bytes(draw, data) if how in ("bytes", "zip") else data


def _other_archive(draw: random.Random, data: bytes) -> bytes:
    """The archive packed anew: an entry changed, gone, packed, or larger than it says."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(sorted(entries))
    how = draw.choice(["changed", "gone", "packed", "name", "comment"])
    if how == "changed":
        entries[name] = mutated_bytes(draw, entries[name])
    elif how == "gone":
        del entries[name]
    elif how == "name":
        entries["../" + name] = entries.pop(name)
    elif how == "packed":
        entries[name] += bytes(1_000_000)
    buffer = io.BytesIO()
    packed = zipfile.ZIP_DEFLATED if how == "packed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", packed) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
        if how == "comment":
            archive.comment = b"x" * 1000 + struct.pack("<I", 0xFFFFFFFF)
    return buffer.getvalue()


def bin_trial(draw: random.Random, folder: Path) -> str:
    """One file of PyTorch, changed or hostile; nothing in it is run."""
    marker = folder / "ran"
    sample = draw.choice(samples()[:8])
    data = _bin_bytes(draw, sample.tensors, marker)
    bad = folder / "bad"
    bad.mkdir()
    (bad / "adapter_model.bin").write_bytes(data)
    (bad / "adapter_config.json").write_text(json.dumps(sample.config))
    ending = _through_a_door(draw, folder, bad)
    if marker.exists():
        raise BrokenLawError("code in a .bin was run")
    return ending
