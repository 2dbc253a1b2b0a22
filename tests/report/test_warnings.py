"""Each warning is given exactly where there is cause for it, and says what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from report.samples import facts, task, version
from sharespace.report import Facts, notices
from sharespace.report.facts import FileBytes, LayerFacts, StreamScores
from sharespace.report.study import Study
from sharespace.subspace.adapter import ModuleShape
from sharespace.subspace.fidelity import LayerFidelity, StorageTally, UpdateTally
from sharespace.subspace.state import BuildSettings


def kinds(found: Facts) -> list[str]:
    return [notice.kind for notice in notices(found)]


def layer(k: int, cap: int | None, n: int = 8) -> LayerFacts:
    return LayerFacts("m", ModuleShape(n, 6), (k, k), (cap, cap) if cap else None)


def scored(*texts: str) -> Any:
    return StreamScores(None, {}, texts)  # type: ignore[arg-type]  # the matrix is not looked at


def test_a_model_in_good_order_gives_none() -> None:
    assert kinds(facts()) == []


def test_an_empty_one_says_so() -> None:
    empty = replace(facts(), tasks=(), study=Study((), torch.zeros(0, 0), torch.zeros(0, 0), {}))
    assert kinds(empty) == ["empty"]


ESTIMATED = replace(task("rte").fidelity, measured=False)

ALONE = StorageTally(per_task=UpdateTally(1, 5))
HALF = replace(task().fidelity, layers={"m": LayerFidelity(0.1, 0.1), "n": LayerFidelity(1.0, 1.0)})
BUDGET = facts(layers=(layer(2, 2),), settings=BuildSettings(budget=1000))

CASES: list[tuple[str, Facts]] = [
    ("erased", facts(task("gone", error=0.995, bound=0.995))),
    ("large-bound", facts(task("lossy", error=0.2, bound=0.3))),
    ("estimated", facts(task("sst2"), task("rte", fidelity=ESTIMATED))),
    ("cap", facts(layers=(layer(2, 2), layer(2, None)))),
    ("budget", BUDGET),
    ("erased-layers", facts(task("half", fidelity=HALF))),
    ("larger", facts(file_bytes=FileBytes(90, 10, 5, 5, 5, 0, 100))),
    ("sixteen-bit", facts(dtype="bfloat16")),
    ("sixteen-bit", facts(dtype="float16")),
    ("pruned", facts(versions=(version(2, {}),))),
    ("per-task", facts(task("alone", stored=ALONE))),
    ("alone", facts(overlap=0.01)),
    ("twins", facts(cosine=1.0)),
    ("untrained", facts(task("zero", norm=0.0))),
    ("unscored", facts(scores=scored("the data of 'rte' was gone"))),
]


@pytest.mark.parametrize(
    ("kind", "found"), CASES, ids=[f"{k}{i}" for i, (k, _) in enumerate(CASES)]
)
def test_a_cause_gives_its_warning_and_no_other(kind: str, found: Facts) -> None:
    assert kinds(found) == [kind]
    notice = notices(found)[0]
    assert notice.title
    assert notice.text
    assert notice.remedy


@pytest.mark.parametrize(
    "found",
    [
        facts(task("nearly", error=0.29, bound=0.299)),
        facts(layers=(layer(2, 3),)),
        # The whole side is there: a merge has nothing to truncate.
        facts(layers=(layer(6, 6),)),
        # Stored per task, so no subspace that could be full.
        facts(layers=(LayerFacts("m", ModuleShape(8, 6), (0, 0), (0, 0)),)),
        facts(file_bytes=FileBytes(75, 10, 5, 5, 5, 0, 100)),
        facts(overlap=0.051),
        # Other coefficients in the same directions: that is sharing.
        facts(cosine=0.0),
        facts(cosine=-0.3),
        facts(task("only"), cosine=1.0),
        facts(scores=scored()),
    ],
)
def test_just_short_of_the_cause_gives_none(found: Facts) -> None:
    assert kinds(found) == []


def test_serious_ones_come_first() -> None:
    found = facts(task("lossy", bound=0.5, stored=ALONE), dtype="float16")
    levels = [notice.level for notice in notices(found)]
    assert levels[0] == "serious"
    assert levels == sorted(levels, key=lambda level: level != "serious")


def test_an_erased_task_is_not_called_lossy_too() -> None:
    both = facts(task("gone", error=1.0, bound=1.0), task("lossy", bound=0.4, place=2))
    by_kind = {notice.kind: notice for notice in notices(both)}
    assert "gone" in by_kind["erased"].text
    assert "gone" not in by_kind["large-bound"].text


def test_many_names_are_not_all_listed() -> None:
    many = [task(f"task-{i:03d}", bound=0.4, place=i) for i in range(50)]
    text = notices(facts(*many))[0].text
    assert "task-004 and 45 more" in text
    assert "task-005" not in text
