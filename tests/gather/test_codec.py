"""The file of a contribution: what goes in comes out, and what is damaged does not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from gather.workers import ALL, plain, trained
from sharespace.errors import ContributionError
from sharespace.gather import Contribution, Coordinates, PlainFactors, decode, encode
from sharespace.store import load as load_model

Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]


def resealed(data: bytes, change: Change) -> bytes:
    """Changed as a faulty or hostile writer would: all checksums are right."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    value = json.loads(header["__metadata__"]["sharespace"])
    tensors = load(data)
    value["data_sha256"] = None
    change(value, tensors)
    body = save(tensors)
    begin = 8 + int.from_bytes(body[:8], "little")
    if value.get("data_sha256", "") is None:
        value["data_sha256"] = hashlib.sha256(body[begin:]).hexdigest()
    return save(tensors, {"sharespace": json.dumps(value)})


@pytest.fixture
def found(store: Path) -> Contribution:
    return trained(load_model(store), "new", 3)


def same(a: Contribution, b: Contribution) -> bool:
    def flat(one: Contribution) -> list[torch.Tensor]:
        parts = [vars(u) for u in one.updates.values()]
        values = [v for part in parts for v in part.values() if isinstance(v, torch.Tensor)]
        return [*values, *(one.kept[key] for key in sorted(one.kept))]

    fields = ("task", "base", "fingerprint", "basis", "config", "provenance")
    return (
        all(getattr(a, name) == getattr(b, name) for name in fields)
        and list(a.updates) == list(b.updates)
        and all(torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))
    )


def test_what_goes_in_comes_out(found: Contribution) -> None:
    for one in (found, plain("lora", 4)):
        name, data = encode(one)
        assert same(decode(data, name), one)
        assert name == f"contribution-{hashlib.sha256(data).hexdigest()}.safetensors"


def test_equal_content_has_one_name(found: Contribution) -> None:
    again = replace(found, kept=dict(reversed(list(found.kept.items()))))
    assert encode(found) == encode(again)
    assert encode(found)[0] != encode(replace(found, task="other"))[0]


def test_it_is_small(found: Contribution) -> None:
    """Coefficients and temporary directions, not the factors that they stand for."""
    numbers = sum(
        t.numel()
        for u in found.updates.values()
        for t in vars(u).values()
        if isinstance(t, torch.Tensor)
    )
    assert numbers == sum(2 * 2 * 2 + s.out_features + s.in_features for s in ALL.values())
    assert len(encode(found)[1]) < 4 * numbers + 4 * 24 + 2000


def test_a_damaged_byte_is_found_by_the_name_and_without_it(found: Contribution) -> None:
    name, data = encode(found)
    for at in (3, 9, 200, len(data) - 1):
        damaged = bytearray(data)
        damaged[at] ^= 1
        with pytest.raises(ContributionError, match="sha256"):
            decode(bytes(damaged), name)
        if at in (3, len(data) - 1):
            with pytest.raises(ContributionError):
                decode(bytes(damaged), "renamed.safetensors")


@pytest.mark.parametrize("length", [0, 7, 8, 60, -1])
def test_a_file_that_is_cut_short_is_refused(found: Contribution, length: int) -> None:
    with pytest.raises(ContributionError):
        decode(encode(found)[1][:length], "renamed.safetensors")


def test_a_huge_header_is_refused_unread() -> None:
    data = (1 << 40).to_bytes(8, "little") + b"{}"
    with pytest.raises(ContributionError, match="a header of 1099511627776 bytes"):
        decode(data, "x.safetensors")


def test_a_safetensors_file_that_is_none_is_refused() -> None:
    with pytest.raises(ContributionError, match="not a contribution"):
        decode(save({"a": torch.zeros(2)}), "x.safetensors")


def key(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(k for k in sorted(tensors) if k.endswith(part))


def put(part: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(_value: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        name = key(tensors, part)
        tensors[name] = make(tensors[name]).contiguous()

    return change


def drop(part: str) -> Change:
    return lambda _, tensors: tensors.pop(key(tensors, part))


def field(**new: Any) -> Change:
    return lambda value, _: value.update(new)


FAULTS: dict[str, tuple[Change, str]] = {
    "nan": (put(".left", lambda t: t * float("nan")), "not finite"),
    "infinite": (put(".right_temporary", lambda t: t / 0), "not finite"),
    "nan in a head": (put("head.weight", lambda t: t * float("nan")), "not finite"),
    "huge": (put(".left", lambda t: t * 1e30), "norm"),
    "columns": (put(".left", lambda t: t[:, :1]), "do not fit each other"),
    "dimensions": (put(".left", lambda t: t.reshape(-1)), "2 dimensions"),
    "integers": (put(".left", lambda t: t.int()), "2 dimensions"),
    "too many directions": (put(".left_temporary", lambda t: t.repeat(1, 9)), "do not fit"),
    "missing tensor": (drop(".right"), "missing"),
    "unknown tensor": (lambda _, t: t.update(x=torch.zeros(1)), "unknown tensors"),
    "newer schema": (field(schema_version=3), "Upgrade"),
    "no task": (field(task=""), "empty"),
    "no text": (field(task=7), "task"),
    "path": (field(task="../../etc/passwd"), "path"),
    "dots": (field(task=".."), "path"),
    "backslash": (field(task="a\\b"), "path"),
    "escape": (field(task="a\x1b[2J"), "printed"),
    "surrogate": (field(task="a\ud800"), "printed"),
    "long": (field(task="a" * 300), "300 characters"),
    "no modules": (field(modules=[]), "modules"),
    "one module twice": (field(modules=[{"module": "q"}] * 2), "modules"),
    "no basis id": (field(basis={"id": "x", "version": 1}), "basis"),
    "wrong hash of the data": (field(data_sha256="0" * 64), "not those that were written"),
    "no config": (field(config=[]), "config"),
    "reserved key": (
        lambda _, t: t.update({"kept.__metadata__": torch.zeros(1)}),
        "no key of a tensor",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused(found: Contribution, fault: str) -> None:
    change, reason = FAULTS[fault]
    with pytest.raises(ContributionError, match=reason):
        decode(resealed(encode(found)[1], change), "x.safetensors")


PLAIN_FAULTS: dict[str, tuple[Change, str]] = {
    "ranks": (put(".up", lambda t: t.repeat(1, 2)), "do not fit"),
    "scalings": (put("scalings", lambda t: t[:1]), "scalings"),
    "scaling": (put("scalings", lambda t: t * float("nan")), "not finite"),
    "kernel": (
        lambda value, _: [m.update(kind="conv", kernel=[3, 3]) for m in value["modules"]],
        "kernel",
    ),
}


@pytest.mark.parametrize("fault", PLAIN_FAULTS)
def test_faults_of_plain_factors_are_refused(fault: str) -> None:
    change, reason = PLAIN_FAULTS[fault]
    with pytest.raises(ContributionError, match=reason):
        decode(resealed(encode(plain("lora", 4))[1], change), "x.safetensors")


def test_the_helper_itself_keeps_what_is_right(found: Contribution) -> None:
    same_again = resealed(encode(found)[1], lambda _value, _tensors: None)
    assert same(decode(same_again, "x.safetensors"), found)


def test_a_bad_one_cannot_be_handed_in(found: Contribution) -> None:
    q = found.updates["q"]
    assert isinstance(q, Coordinates)
    broken = replace(q, left=q.left * float("nan"))
    with pytest.raises(ContributionError, match="finite"):
        encode(replace(found, updates={**found.updates, "q": broken}))
    with pytest.raises(ContributionError, match="path"):
        encode(replace(found, task="a/b"))
    with pytest.raises(ContributionError, match="configuration"):
        encode(replace(found, config={"x": float("nan")}))


def test_random_bytes_never_do_anything_else_than_refuse(found: Contribution) -> None:
    name, data = encode(found)
    draw = torch.Generator().manual_seed(0)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(3):
            at = int(torch.randint(len(data), (1,), generator=draw))
            damaged[at] = int(torch.randint(256, (1,), generator=draw))
        if bytes(damaged) != data:
            with pytest.raises(ContributionError):
                decode(bytes(damaged), name)
            try:
                decode(bytes(damaged), "renamed.safetensors")
            except ContributionError:
                continue


def test_scaling_and_kernel_of_plain_factors_are_kept() -> None:
    found = plain("lora", 4)
    q = found.updates["q"]
    assert isinstance(q, PlainFactors)
    again = replace(found, updates={"q": replace(q, scaling=-0.3)})
    read = decode(encode(again)[1], "x.safetensors").updates["q"]
    assert isinstance(read, PlainFactors)
    assert (read.scaling, read.shape) == (-0.3, q.shape)
