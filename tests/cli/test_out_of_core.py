"""``--memory``: out of core where a layer is larger, said by init, add and info."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.conftest import Ran

Run = Callable[..., Ran]


def test_init_add_and_info_say_what_was_built_out_of_core(
    run: Run, adapters: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    built = run("init", out, adapters / "sst2", adapters / "rte", "--k", 2, "--memory", "100B")
    assert built.code == 0
    assert "3 of 3 layers were built out of core" in built.out
    added = run("merge", out, adapters / "mrpc", "--memory", "1B")
    assert added.code == 0
    assert "3 of 3 layers were built out of core" in added.out
    assert "3 of 3 layers were built out of core" in run("info", out).out
    layers = run("info", out, "--json").json["layers"]
    assert all(layer["out_of_core"] for layer in layers.values())
    assert run("verify", out).code == 0
    page = tmp_path / "r.html"
    assert run("report", out, "-o", page).code == 0
    assert "into 3 of 3 layers out of core" in page.read_text(encoding="utf-8")


def test_what_fits_is_as_without_the_option(run: Run, adapters: Path, tmp_path: Path) -> None:
    two = [adapters / "sst2", adapters / "rte"]
    here, there = tmp_path / "here", tmp_path / "there"
    assert run("init", here, *two, "--k", 2).code == 0
    built = run("init", there, *two, "--k", 2, "--memory", "1GB", "--json")
    assert built.json["out_of_core"] == []
    basis = {p.name for p in here.rglob("*.safetensors")}
    assert {p.name for p in there.rglob("*.safetensors")} == basis


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--error", "0.1"], "largest error"),
        (["--budget", "20k"], "byte budget"),
        (["--k", "2", "--method", "share"], "method 'share'"),
        (["--k", "2", "--memory", "lots"], "lots"),
        (["--k", "2", "--memory", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_is_one_error_and_nothing_is_written(
    options: list[str], why: str, run: Run, adapters: Path, tmp_path: Path
) -> None:
    more = options if "--memory" in options else [*options, "--memory", "100B"]
    failed = run("init", tmp_path / "s", adapters / "sst2", adapters / "rte", *more)
    assert failed.code == 2
    assert why in failed.err
    assert not (tmp_path / "s").exists()
