"""Every benchmark runs, at a tiny size, and writes results that its own report can print."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psutil", reason="extra 'bench' is not installed")

from benchmarks import (
    build,
    combine,
    equal_bytes,
    errors,
    many,
    many_sets,
    merge,
    readme,
    round_trip,
    scale,
    training,
)

TRAINS = pytest.mark.skipif(
    find_spec("peft") is None or find_spec("sklearn") is None, reason="needs peft and scikit-learn"
)
SMALL = ["--count", "3", "--steps", "6"]


def results(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    assert found["environment"]["seed"] == 0
    return found


def test_build_measures_every_contender_that_is_installed(tmp_path: Path) -> None:
    out = tmp_path / "build.json"
    arguments = ["--sizes", "3x48", "--r", "4", "--k", "8", "--repeats", "1", "--threads", "1"]
    build.main([*arguments, "--out", str(out)])
    runs = results(out)["sets"][0]["runs"]
    expected = ["sharespace"]
    expected += ["lorashare"] if find_spec("lorashare") else []
    expected += ["vlora-dev"] if find_spec("vlora") else []
    assert [r["contender"] for r in runs] == expected
    assert all(r["seconds"] > 0 and 0 <= r["error_mean"] <= r["error_worst"] for r in runs)
    assert runs[0]["limit_seconds"] > 0


def test_scale_measures_each_point_in_a_process_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    sizes = ["--tasks", "4", "--widths", "48", "--in-memory", "--merge", "48"]
    scale.main([*sizes, "--r", "4", "--k", "8", "--memory", "1000", "--repeats", "1",
                "--no-figure", "--out", str(out)])  # fmt: skip
    points = results(out)["points"]
    assert [p["kind"] for p in points] == ["streamed", "merge"]
    assert [p["streamed_layers"] for p in points] == [2, 2]
    assert all(p["build"][1] > 0 and p["limit"][1] > 0 for p in points)


@pytest.mark.parametrize(("name", "module"), [("lorashare", "lorashare"), ("vlora-dev", "vlora")])
def test_a_peer_keeps_all_where_k_is_the_rank(name: str, module: str, tmp_path: Path) -> None:
    pytest.importorskip(module, reason=f"peer {name} is not installed")
    from benchmarks.contenders import build as build_peer
    from benchmarks.measure import errors as measured
    from benchmarks.planted import Planted

    paths = Planted(tasks=3, d=24, r=2, rank=4).write(tmp_path)
    assert measured(build_peer(name, paths, 12 if name == "lorashare" else 3), paths).worst < 0.5


def test_merge_times_both_sides_of_the_cap(tmp_path: Path) -> None:
    out = tmp_path / "merge.json"
    arguments = [
        "--tasks",
        "2",
        "5",
        "--d",
        "32",
        "--k",
        "4",
        "--p",
        "2",
        "--repeats",
        "1",
        "--no-figure",
    ]
    merge.main([*arguments, "--out", str(out)])
    points = results(out)["points"]
    assert [(p["tasks"], p["at_cap"]) for p in points] == [
        (2, False), (5, False), (2, True), (5, True)
    ]  # fmt: skip


def test_round_trip_loses_nothing(tmp_path: Path) -> None:
    from benchmarks.planted import Planted

    paths = Planted(tasks=3, d=24, r=2, rank=4).write(tmp_path / "set")
    out = tmp_path / "round_trip.json"
    round_trip.main(["--adapters", str(tmp_path / "set"), "--out", str(out)])
    tasks = results(out)["sets"]["set"]
    assert len(tasks) == len(paths)
    assert all(t["error"] < 1e-5 and t["lost"] == 0 for t in tasks.values())


@TRAINS
def test_errors_lists_every_method_for_every_k(tmp_path: Path) -> None:
    out = tmp_path / "errors.json"
    errors.main([*SMALL, "--k", "4", "--cache", str(tmp_path / "cache"), "--out", str(out)])
    found = next(iter(results(out)["sets"].values()))["errors"]["4"]
    assert list(found) == list(errors.METHODS)
    assert found["joint"]["mean_task"] <= found["share, centred"]["mean_task"]


@TRAINS
def test_equal_bytes_never_spends_more_than_the_budget(tmp_path: Path) -> None:
    out = tmp_path / "equal_bytes.json"
    equal_bytes.main(
        [*SMALL, "--fractions", "0.5", "--cache", str(tmp_path / "cache"), "--out", str(out)]
    )
    for found in results(out)["sets"].values():
        budget = found["budgets"]["0.5"]
        rows = [r for r in budget["rows"].values() if "refused" not in r]
        assert all(r["bytes"] <= budget["budget_bytes"] for r in rows)


@TRAINS
def test_many_never_stores_worse_than_own_svds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_sets, "base_model", lambda seed: training._base(seed, 5))
    monkeypatch.setattr(many_sets, "RUN_STEPS", 6)
    out = tmp_path / "many.json"
    arguments = ["--counts", "4", "--steps", "3", "--merged", "4", "--batches", "2", "--no-figure"]
    many.main([*arguments, "--cache", str(tmp_path / "cache"), "--out", str(out)])
    found = results(out)
    assert list(found["sets"]) == list(many_sets.SETS)
    for counts in found["sets"].values():
        rows = counts["4"]["rows"]
        assert all(r["bytes"] <= counts["4"]["budget_bytes"] for r in rows.values())
        assert rows[many.BUDGET]["square"] <= rows[many.OWN]["square"] * 1.0001
        assert rows[many.BUDGET]["files"] > rows[many.BUDGET]["bytes"]
    assert [s["adapters"] for s in found["merges"]["steps"]] == [2, 4]


def test_combine_measures_every_way(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    out = tmp_path / "combine.json"
    sizes = ["--shapes", "24x20", "--tasks", "3", "--r", "2", "--repeats", "1"]
    combine.main([*sizes, "--out", str(out)])
    errors = {run["way"]: run["error"] for run in results(out)["runs"]}
    assert max(errors[way] for way in ("Share linear", "PEFT cat", "PEFT svd")) < 1e-5
    assert errors["PEFT linear"] > 0.1
    combine.main([*sizes, "--dense", "1", "--out", str(out)])
    assert "PEFT svd" not in {run["way"] for run in results(out)["runs"]}


def test_readme_replaces_what_is_between_markers() -> None:
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb"
    assert readme.between(text, "x", "new") == "a\n<!-- x -->\nnew\n<!-- /x -->\nb"
    with pytest.raises(ValueError, match="no markers"):
        readme.between("nothing", "x", "new")
