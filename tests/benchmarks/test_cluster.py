"""The cluster's costs are measured, and the plan on paper counts as the library does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="extra 'bench' is not installed")
pytest.importorskip("distributed", reason="extra 'cluster' is not installed")

from benchmarks import cluster, common, paper_plan
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


def test_a_quiet_curve_is_preferred(tmp_path: Path) -> None:
    for name in ("cluster", "merge"):
        (tmp_path / f"{name}.json").write_text((common.RESULTS / f"{name}.json").read_text())
    point = {
        "kind": "streamed", "width": 8, "tasks": 5, "seconds": 3.0, "adapter_bytes": 600,
        "streamed_layers": 2, "others_during": 0.0,
    }  # fmt: skip
    for others, source in ((0.0, "`scale`"), (0.9, "`cluster`")):
        curve = {"points": [{**point, "others_during": others}]}
        (tmp_path / "scale.json").write_text(json.dumps(curve))
        rate, said = paper_plan.out_of_core_rate(tmp_path)
        assert said.startswith(source)
        assert (rate == 0.01) == (source == "`scale`")
