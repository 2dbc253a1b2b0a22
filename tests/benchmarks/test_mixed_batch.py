"""Results of mixed batches, joined where a run adds to a file."""

from __future__ import annotations

from typing import Any

from benchmarks.mixed_batch import with_set


def found(phase: str, **runs: str) -> dict[str, Any]:
    return {"shape": "bert", "targets": "q, v", "phase": phase, "runs": runs}


def test_other_numbers_of_tasks_are_kept() -> None:
    sets = [found("prompt", **{"4": "old", "64": "old"}), found("step", **{"1": "old"})]
    joined = with_set(sets, found("prompt", **{"64": "new", "16": "new"}))
    assert [s["phase"] for s in joined] == ["prompt", "step"]
    assert list(joined[0]["runs"].items()) == [("4", "old"), ("16", "new"), ("64", "new")]
    assert joined[1] == sets[1]
    assert with_set([], found("step", **{"1": "new"})) == [found("step", **{"1": "new"})]
