"""Changes to bytes, JSON and safetensors files, as damage, bad tools and bad will make them."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from safetensors.torch import save
from torch import Tensor

Json: TypeAlias = Any

NESTED = "[" * 20_000 + "]" * 20_000


class RawJson(str):
    """Text that is written into JSON as it is."""


HOSTILE: tuple[Json, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 1_000_001, 2**31, 2**63, 10**400, -(10**30)),
    *(0.0, -0.0, 1e-45, 3e-38, 1e38, 1e308, -1.5, math.nan, math.inf, -math.inf),
    *("", " ", "a", "\0", "\x1b[31m", "\ud800", "\u202e", "q\n", "x" * 5_000, "../../x", "/"),
    *("(a+)+$", "(([a-z_.])+.)+[A-Z]([a-z])+", "(a)\\1", "[", "*", ".*", "all-linear", "LORA"),
    *([], {}, [None], [[]], [1, "q"], {"": ""}, {"q": -1}, {"(a+)+$": 2}, ["q"] * 1000),
    *(RawJson(NESTED), RawJson("1e999"), RawJson("1" * 5_000), RawJson("-"), RawJson('{"a":')),
)
"""Values that a reader does not expect where it finds them."""


def as_text(value: Json) -> str:
    """JSON with the raw texts as they are; what cannot be said in JSON is said as Python does."""
    marks: dict[str, str] = {}

    def marked(one: Json) -> Json:
        if isinstance(one, RawJson):
            mark = f"raw-{len(marks)}-text"
            marks[f'"{mark}"'] = str(one)
            return mark
        if isinstance(one, dict):
            return {key: marked(entry) for key, entry in one.items()}
        return [marked(entry) for entry in one] if isinstance(one, list) else one

    text = _dumped(marked(value))
    for mark, raw in marks.items():
        text = text.replace(mark, raw)
    return text


def _dumped(value: Json) -> str:
    # Python refuses to print whole numbers of more than 4,300 digits; none here has as many.
    return json.dumps(value, ensure_ascii=False)


def encoded(draw: random.Random, text: str) -> bytes:
    """Text as UTF-8, and now and then as something else."""
    encoding = draw.choice(["utf-8"] * 12 + ["utf-16", "latin-1", "utf-8-sig", "utf-32"])
    errors = "surrogatepass" if encoding.startswith("utf") else "replace"
    return text.encode(encoding, errors)


def mutated_json(draw: random.Random, value: Json, words: tuple[str, ...] = ()) -> Json:
    """The value with one change somewhere in it.

    Args:
        words: keys that a reader may know.
    """
    path = _path(draw, value)
    if not path:
        return (
            draw.choice(HOSTILE)
            if draw.random() < 0.1 or not isinstance(value, dict)
            else (_mutated_entry(draw, value, words))
        )
    key, *rest = path
    changed = mutated_json(draw, value[key], words) if rest else _changed(draw, value[key])
    if isinstance(value, dict):
        return {**value, key: changed}
    return [*value[:key], changed, *value[key + 1 :]]


def _path(draw: random.Random, value: Json) -> list[Any]:
    """Where to change something: not always as deep as there is something."""
    path: list[Any] = []
    while isinstance(value, dict | list) and value and draw.random() < 0.75:
        key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
        path.append(key)
        value = value[key]
    return path


def _mutated_entry(draw: random.Random, value: dict[str, Json], words: tuple[str, ...]) -> Json:
    """An object without one of its keys, or with one more."""
    keys = list(value)
    if keys and draw.random() < 0.4:
        gone = draw.choice(keys)
        return {key: entry for key, entry in value.items() if key != gone}
    name = draw.choice([*words, *keys, "", "\x1b[2J", "x" * 300])
    return {**value, name: draw.choice(HOSTILE)}


def _changed(draw: random.Random, value: Json) -> Json:
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.4:
        return draw.choice([value + 1, -value, value * 1000, value // 3, value * 10**25])
    if isinstance(value, str) and draw.random() < 0.4:
        return draw.choice([value + "\n", value.upper(), value + value, value[:-1], f"x.{value}"])
    return draw.choice(HOSTILE)


def mutated_bytes(draw: random.Random, data: bytes) -> bytes:
    """The bytes with one change: flipped bits, cut, longer, a part twice, a part of zeros."""
    if not data or draw.random() < 0.1:
        return draw.choice([b"", b"\0", b"{}", b"PK\x03\x04", b"\x80\x02}.", data + b"more"])
    # The beginning of a file says what is in it: every second change is there.
    at = draw.randrange(len(data) if draw.random() < 0.5 else min(len(data), 400))
    end = min(at + draw.choice([1, 2, 8, 64, 1000]), len(data))
    part = data[at:end]
    flipped = bytes(byte ^ 1 << draw.randrange(8) for byte in part[:20])
    parts = [
        flipped + part[20:],
        bytes([draw.choice([0, 1, 127, 128, 255])]) + part[1:],
        b"",
        bytes(len(part)),
        part + part,
        draw.randbytes(end - at) + part,
    ]
    return data[:at] if draw.random() < 0.2 else data[:at] + draw.choice(parts) + data[end:]


def split_file(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header, data[8 + length :]


def joined_file(header: bytes, data: bytes) -> bytes:
    """A safetensors file of a header's bytes and the tensors'."""
    return struct.pack("<Q", len(header)) + header + data


def mutated_header(draw: random.Random, data: bytes) -> bytes:
    """A safetensors file with one change in its header's JSON."""
    header, tensors = split_file(data)
    changed = mutated_json(draw, header, ("__metadata__", "a.lora_A.weight"))
    text = encoded(draw, as_text(changed))
    if draw.random() < 0.05:
        return struct.pack("<Q", draw.choice([0, 1, 2**31, 2**63, 2**64 - 1])) + text + tensors
    return joined_file(text, tensors)


Tensors: TypeAlias = dict[str, Tensor]


def _other_key(draw: random.Random, key: str) -> str:
    return draw.choice(
        [
            f"module.{key}",
            f"_orig_mod.{key}",
            key.replace("base_model.model.", ""),
            key.replace(".lora_A", ".lora_A.default").replace(".lora_B", ".lora_B.default"),
            key.replace("lora_A", "lora_B"),
            key.replace("lora_", "LORA_"),
            key.replace(".", "_"),
            key.replace("0", "1"),
            key + "\x1b[31m",
            key + "\n",
            "x." * 400 + key,
            "..." + key,
            key.replace("lora_A", "hada_w1_a").replace("lora_B", "hada_w1_b"),
            "\u202e" + key,
        ]
    )


def _other_tensor(draw: random.Random, tensor: Tensor) -> Tensor:
    changes: list[Callable[[], Tensor]] = [
        lambda: tensor.mT.contiguous() if tensor.ndim >= 2 else tensor,
        lambda: tensor[:0] if tensor.ndim else tensor[None],
        lambda: tensor.flatten(),
        lambda: tensor[None].contiguous(),
        lambda: torch.cat([tensor, tensor]) if tensor.ndim else tensor + 1,
        lambda: torch.zeros_like(tensor),
        lambda: _with_value(draw, tensor),
        lambda: tensor * draw.choice([1e-30, 1e-20, 1e-12, 1e12, 1e18, 1e30]),
        lambda: tensor.to(draw.choice([torch.float64, torch.float16, torch.bfloat16])),
        lambda: tensor.to(draw.choice([torch.int8, torch.int64, torch.bool, torch.uint8])),
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: tensor.to(torch.complex64),
        lambda: torch.tensor(1.0),
    ]
    return draw.choice(changes)()


def _with_value(draw: random.Random, tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    if changed.numel():
        value = draw.choice([math.nan, math.inf, -math.inf, 3e38, 1e-45, 1e20])
        changed.flatten()[draw.randrange(changed.numel())] = value
    return changed


def mutated_tensors(draw: random.Random, tensors: Tensors) -> Tensors:
    """The tensors with one change: one is gone, renamed, there twice, or another one."""
    changed = dict(tensors)
    key = draw.choice(sorted(changed))
    how = draw.choice(["gone", "rename", "rename", "twice", "other", "other", "other"])
    if how == "other":
        changed[key] = _other_tensor(draw, changed[key])
    elif how == "twice":
        changed[_other_key(draw, key)] = changed[key].clone()
    else:
        tensor = changed.pop(key)
        if how == "rename":
            changed[_other_key(draw, key)] = tensor
    return changed


def mutated_file(draw: random.Random, tensors: Tensors, metadata: dict[str, str]) -> bytes:
    """A safetensors file with one to three changes, to tensors, to the header, to the bytes."""
    for _ in range(draw.choice([0, 1, 1, 2])):
        tensors = mutated_tensors(draw, tensors) if tensors else tensors
    data: bytes = save(tensors, metadata=metadata)
    last = draw.random()
    if last < 0.25:
        return mutated_header(draw, data)
    return mutated_bytes(draw, data) if last < 0.4 else data
