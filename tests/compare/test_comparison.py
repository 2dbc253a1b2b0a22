"""The table of an experiment: what goes in, what is averaged, and how it looks."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from statistics import stdev

import pytest
from rich.console import Console

from sharespace.compare.comparison import (
    Comparison,
    ComparisonRow,
    Cost,
    claims_markdown,
    markdown,
    rich_table,
)
from sharespace.compare.size import SizeLayout, claims, reach
from sharespace.errors import OptionError
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.adapter import ModuleShape

SHARE = Cost(12_288, 12_994.5, 5_000_000, 12_288)
LORA = Cost(294_912, 295_618.5, 7_077_888)
STREAM = ScoreMatrix(("a", "b"), ("build", "+ b"), ((90.0, None), (89.0, 70.0)))
OWN, HEAD = {"a": 91.0, "b": 71.0}, {"a": 80.0, "b": 60.0}


def share(seed: int = 0, gain: float = 0.0, order: str = "") -> ComparisonRow:
    matrix = replace(STREAM, scores=((90.0, None), (89.0 + gain, 70.0 + gain)))
    return ComparisonRow.from_matrix(
        "Share", matrix, SHARE, own=OWN, head=HEAD, seed=seed, order=order
    )


COMPARISON = Comparison((share(0), share(1, 1.0), ComparisonRow("own | LoRA", OWN, LORA)))


def test_a_row_has_the_measures_of_its_matrix() -> None:
    row = share()
    assert dict(row.scores) == {"a": 89.0, "b": 70.0}
    assert row.mean == 79.5
    assert (row.forgetting, row.backward_transfer) == (1.0, -1.0)
    assert row.gain_retained == pytest.approx((79.5 - 70) / (81 - 70))


def test_a_single_step_has_no_forgetting_to_speak_of() -> None:
    row = ComparisonRow.from_matrix("joint", ScoreMatrix(("a",), ("s",), ((1.0,),)), LORA)
    assert (row.forgetting, row.backward_transfer, row.gain_retained) == (None, None, None)


def test_runs_of_a_method_are_averaged_with_their_spread() -> None:
    ours, own = COMPARISON.summary()
    assert (ours.method, ours.runs, own.runs) == ("Share", 2, 1)
    assert ours.scores["a"].mean == 89.5
    assert ours.mean.std == pytest.approx(stdev([79.5, 80.5]))
    assert own.mean.std is None
    assert own.forgetting is None
    assert ours.paper_count == 12_288


def test_a_figure_that_one_run_lacks_is_not_averaged_over_the_others() -> None:
    without = replace(share(1), gain_retained=None)
    (found,) = Comparison((share(0), without)).summary()
    assert found.gain_retained is None
    assert found.forgetting is not None


def test_record_survives_json() -> None:
    record = json.loads(json.dumps(COMPARISON.to_record(), allow_nan=False))
    assert Comparison.from_record(record) == COMPARISON
    assert record["summary"][0]["mean"]["mean"] == 80.0
    assert record["seeds"] == [0, 1]


@pytest.mark.parametrize(
    "record", [{}, {"rows": [{"method": "x"}]}, {"rows": [{"cost": {"nonsense": 1}}]}]
)
def test_a_broken_record_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="record"):
        Comparison.from_record(record)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(OptionError, match="no rows"):
        Comparison(())
    with pytest.raises(OptionError, match="twice with seed 0"):
        Comparison((share(), share()))
    with pytest.raises(OptionError, match="the same tasks"):
        Comparison((share(), ComparisonRow("x", {"a": 1.0}, LORA)))
    assert Comparison((share(), share(order="backwards"))).orders == ("", "backwards")


def test_markdown_is_one_table_and_what_it_shows() -> None:
    lines = markdown(COMPARISON).splitlines()
    assert lines[0].startswith("| method | a | b | mean | forgetting | BWT | gain retained |")
    assert lines[1].count("--:") == lines[0].count("|") - 2
    assert lines[2] == (
        "| Share | 89.5 ± 0.7 | 70.5 ± 0.7 | 80.0 ± 0.7 | 0.50 ± 0.71 | -0.50 ± 0.71 "
        "| 90.9 ± 6.4 % | 12,288 | 12,994 | 12,288 | 5,000,000 | 2 |"
    )
    assert lines[3] == (
        "| own \\| LoRA | 91.0 | 71.0 | 81.0 | - | - | - | 294,912 | 295,618 | - | 7,077,888 | 1 |"
    )
    assert "2 seeds" in lines[5]
    assert "sample standard deviation" in lines[5]


def test_one_run_and_several_orders_are_named() -> None:
    assert "One run (1 seed)" in markdown(Comparison((share(),)))
    two = Comparison((share(order="x"), share(order="y")))
    assert "(1 seed and 2 orders of the tasks)" in markdown(two)


def test_no_minus_zero() -> None:
    row = replace(share(), backward_transfer=-1e-9)
    assert "| +0.00 |" in markdown(Comparison((row,)))


def test_the_terminal_shows_the_same_cells_and_takes_names_literally() -> None:
    rows = tuple(replace(row, method=f"[red]{row.method}") for row in COMPARISON.rows)
    console = Console(file=io.StringIO(), width=250)
    console.print(rich_table(Comparison(rows)))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "[red]Share" in shown
    assert "80.0 ± 0.7" in shown
    assert "Paper's count" in shown


def test_claims_are_told_both_ways() -> None:
    layout = SizeLayout((ModuleShape(768, 768),) * 24, k=32, p=8, rank=32)
    reached = [(reach(layout, r, "paper"), reach(layout, r, "bytes")) for r in (50, 100)]
    text = claims_markdown(claims(layout, (6,)), reached)
    assert "| 6 | 28,311,552 | 294,912 | 96.0 | 28,311,552 | 5,013,504 | 5.6 |" in text
    assert "- 50 times smaller: paper's count from 1 task on; every byte from 105 tasks on" in text
    assert "- 100 times smaller: paper's count never (limit 96.0); every byte never" in text
