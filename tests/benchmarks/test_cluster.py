"""The cluster's costs are measured, and the plan on paper counts as the library does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="extra 'bench' is not installed")
pytest.importorskip("distributed", reason="extra 'cluster' is not installed")

from benchmarks import cluster, paper_plan
from builders import adapter, build, update

SHAPES = {"q": (12, 9), "k": (4, 9)}


def test_both_executors_are_measured_and_store_the_same(tmp_path: Path) -> None:
    out = tmp_path / "cluster.json"
    arguments = ["--tasks", "3", "--d", "48", "--k", "4", "--workers", "1", "--repeats", "1"]
    cluster.main([*arguments, "--out", str(out)])
    found = json.loads(out.read_text())
    assert [run["executor"] for run in found["runs"]] == ["local", "cluster"]
    assert all(run["same_bytes"] and run["seconds"] > 0 for run in found["runs"])
    assert all(value > 0 for value in found["constants"].values())
    assert found["constants"]["out_of_core_reads"] >= 2


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_plan_counts_bytes_as_the_library_does(k: int) -> None:
    made = [
        adapter(f"t{i}", {m: update(n, d, 2, 10 * i + n) for m, (n, d) in SHAPES.items()})
        for i in range(5)
    ]
    model = build(made, k)
    job = paper_plan.Job(SHAPES, layers=1, adapters=5, r=2, itemsize=4)
    assert job.adapter_bytes == made[0].nbytes
    assert job.basis_bytes(k) == sum(layer.nbytes for layer in model.layers.values())
    stored = sum(c.nbytes for t in model.tasks.values() for c in t.coefficients.values())
    assert job.coefficient_bytes(k) == stored


def test_the_plan_is_printed_and_written_between_its_markers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- paper_plan -->\nold\n<!-- /paper_plan -->\nafter\n")
    paper_plan.main(["--adapters", "100", "--workers", "2", "--page", str(page)])
    said = capsys.readouterr().out
    text = page.read_text()
    assert "131 MB" in said  # r (n + d) of q, k, v and o, 80 layers, 2 bytes
    assert said.strip() in text
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after\n")


def test_rates_are_those_of_the_end_of_the_widest_curve(tmp_path: Path) -> None:
    point = {"kind": "streamed", "width": 8, "streamed_layers": 2, "build": [50.0, 3.0]}
    points = [
        {**point, "tasks": 10, "adapter_bytes": 600, "peak_bytes": 5000},
        {**point, "tasks": 4, "adapter_bytes": 240, "peak_bytes": 2000},
        {**point, "width": 4, "tasks": 99, "adapter_bytes": 10**6, "peak_bytes": 1},
        {**point, "kind": "in memory", "tasks": 999, "adapter_bytes": 10**6, "peak_bytes": 1},
        {**point, "streamed_layers": 0, "tasks": 999, "adapter_bytes": 10**6, "peak_bytes": 1},
    ]
    (tmp_path / "scale.json").write_text(json.dumps({"points": points}))
    assert paper_plan.out_of_core_rate(tmp_path)[0] == 0.01
    assert paper_plan.more_memory(tmp_path) == 500
