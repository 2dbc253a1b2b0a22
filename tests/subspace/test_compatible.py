"""One base model, one shape a module."""

from __future__ import annotations

import pytest

from builders import adapter, build, update
from sharespace.errors import MismatchError
from sharespace.subspace.adapter import Adapter, BaseModel, ModuleShape, common_base, common_shapes


def _of(name: str, base: str | None, n: int = 6) -> Adapter:
    return adapter(name, update(n, 4, 2), base=BaseModel(base))


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        (["gpt2", "gpt2"], "gpt2"),
        ([None, "gpt2", None], "gpt2"),
        (["/home/me/gpt2", "gpt2"], "gpt2"),
        (["gpt2", "./gpt2"], "gpt2"),
        ([None, None], None),
        (["org/name", "C:\\models\\name"], "org/name"),
    ],
)
def test_a_missing_id_and_a_local_path_agree_with_anything(
    ids: list[str | None], wanted: str | None
) -> None:
    assert common_base([_of(f"t{i}", x) for i, x in enumerate(ids)]).id == wanted


def test_two_different_ids_are_a_mismatch_that_names_both() -> None:
    with pytest.raises(MismatchError, match=r"'b'.*org/two.*org/one"):
        common_base([_of("a", "org/one"), _of("b", "org/two")])
    with pytest.raises(MismatchError, match="the Share model"):
        common_base([_of("b", "org/two")], BaseModel("org/one"))


def test_one_module_of_two_shapes_is_a_mismatch() -> None:
    with pytest.raises(MismatchError, match=r"'b', module 'm'.*7x4.*6x4"):
        build([_of("a", None), _of("b", None, n=7)], 2)


def test_shapes_come_in_order_of_appearance() -> None:
    first = adapter("a", {"z": update(6, 4, 2), "b": update(3, 3, 1)})
    second = adapter("b", {"a": update(5, 4, 2), "b": update(3, 3, 1)})
    assert list(common_shapes([first, second])) == ["z", "b", "a"]
    assert list(common_shapes([second], {"b": ModuleShape(3, 3)})) == ["b", "a"]
