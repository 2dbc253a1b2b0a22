"""Similarity on adapters that others trained: it finds the related ones among them."""

from __future__ import annotations

import pytest

from builders import build
from shared_data import public_adapters
from sharespace import read_adapter
from sharespace.subspace.merge import merge
from sharespace.subspace.similarity import CkaMatrix, UpdateSide, adapters_cka, settling

STRANGER = "agnews-r4-bias-all"
FIRST, SECOND, THIRD = (f"portuguese-step{n}" for n in (1000, 4000, 8610))


def between(found: CkaMatrix, one: str, two: str) -> float:
    value = found.values[found.names.index(one)][found.names.index(two)]
    assert value is not None
    return value


@pytest.mark.parametrize("side", ["left", "right"])
def test_checkpoints_of_one_run_are_alike_and_a_stranger_is_not(side: UpdateSide) -> None:
    found = adapters_cka([read_adapter(p) for p in public_adapters("roberta-base")], side=side)
    later, far = between(found, SECOND, THIRD), between(found, FIRST, THIRD)
    assert later > 0.9
    assert later > far > 0.5
    assert all(between(found, STRANGER, name) < 0.2 for name in (FIRST, SECOND, THIRD))


def test_the_subspace_turns_less_for_a_relative_than_for_a_stranger() -> None:
    known = {a.name: a for a in map(read_adapter, public_adapters("roberta-base"))}
    before = build([known[FIRST], known[SECOND]], 8)
    (relative,) = settling([before, merge(before, [known[THIRD]])])
    (stranger,) = settling([before, merge(before, [known[STRANGER]])])
    assert relative.overlap is not None
    assert stranger.overlap is not None
    assert relative.overlap > stranger.overlap
