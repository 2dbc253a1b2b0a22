"""Values as people type them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharespace.cli.arguments import adapter_paths, size_in_bytes
from sharespace.errors import OptionError, TaskExistsError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500000", 500_000),
        ("500k", 500_000),
        ("1.5 MB", 1_500_000),
        ("2MiB", 2**21),
        ("1gib", 2**30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "k", "-1", "1e6", "1TB", "1 k b", "0x10"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(OptionError):
        size_in_bytes(text)


def test_globs_names_and_paths_that_look_like_names(tmp_path: Path) -> None:
    for folder in ("a", "b", "x=y"):
        (tmp_path / folder).mkdir()
    found = adapter_paths([f"{tmp_path}/[ab]", f"c={tmp_path}/a", f"{tmp_path}/x=y"])
    assert found == {
        "a": f"{tmp_path}/a",
        "b": f"{tmp_path}/b",
        "c": f"{tmp_path}/a",
        "x=y": f"{tmp_path}/x=y",
    }


def test_a_relative_glob_stays_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path)
    assert adapter_paths(["o*"]) == {"one": "one"}


def test_two_adapters_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(TaskExistsError, match="NAME=PATH"):
        adapter_paths([f"{tmp_path}/p/a", f"{tmp_path}/q/a"])
