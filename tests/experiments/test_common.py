"""What several experiments share: sizes, rates and variants of a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from experiments.common import rates, sizes, slower, variant
from experiments.common.runs import write
from experiments.common.tables import scores

from sharespace.compare import ComparisonSettings
from sharespace.learn import TaskMethod, TrainingSettings
from sharespace.stream.measures import ScoreMatrix

TASKS = ("a", "b")


def method(trained: int, **score: float) -> dict[str, Any]:
    matrix = ScoreMatrix(TASKS).with_step("a", {"a": score["a"]}, learned=["a"])
    matrix = matrix.with_step("b", score, learned=["b"])
    return {
        "matrix": matrix.to_record(),
        "trainable": dict.fromkeys(TASKS, trained),
        "heads": dict.fromkeys(TASKS, 0),
        "stored": {"total": 10},
        "paper_count": None,
    }


def results(seed: int = 0, lora: float = 8e-3, p: int = 16, **methods: Any) -> dict[str, Any]:
    return {
        "order": "forward",
        "tasks": list(TASKS),
        "environment": {"seed": seed},
        "settings": {"rank": 8, "p": p, "phi": 4, "k": 32, "lora": {"learning_rate": lora}},
        "methods": methods,
    }


RUN = results(
    head_only=method(0, a=40.0, b=50.0),
    per_task_lora=method(1000, a=80.0, b=90.0),
    share_strict=method(250, a=80.0, b=80.0),
    sequential_lora=method(1000, a=10.0, b=10.0),
    joint_lora=method(1000, a=70.0, b=70.0),
)


def test_the_better_rate_is_taken_method_by_method() -> None:
    again = results(
        lora=1e-3,
        sequential_lora=method(1000, a=60.0, b=60.0),
        joint_lora=method(1000, a=65.0, b=65.0),
        ewc=method(1000, a=61.0, b=61.0),
        per_task_lora=method(1000, a=99.0, b=99.0),
    )
    other = results(seed=1, lora=1e-3, sequential_lora=method(1000, a=99.0, b=99.0))
    found = slower.with_slower(RUN, [again, other])
    assert scores(found, "sequential_lora")["a"] == 60.0
    assert scores(found, "joint_lora")["a"] == 70.0
    assert scores(found, "ewc")["a"] == 61.0
    assert scores(found, "per_task_lora")["a"] == 80.0, "own LoRA has its rate"
    table = slower.slower_table([RUN], [again, other])
    assert "| forward | 0 | sequential_lora | 0.008: 10.00; 0.001: 60.00 |" in table
    assert "| forward | 0 | ewc | 0.001: 61.00 |" in table
    assert slower.slower_table([RUN], [other]) == ""


def test_sizes_are_compared_on_what_was_learned(tmp_path: Path) -> None:
    small = results(p=8, share_strict=method(50, a=80.0, b=60.0))
    write(tmp_path / "p8" / "mobile" / "forward-0.json", small)
    low = results(per_task_lora=method(125, a=50.0, b=70.0))
    low["settings"]["rank"] = 1
    write(tmp_path / "rank-1" / "mobile" / "forward-0.json", low)
    found = sizes.read_sizes(tmp_path, "mobile")
    lines = sizes.size_table([RUN], json.loads(json.dumps(found)), initial=1).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[3:-1]] for line in lines if "forward" in line]
    assert rows == [
        ["LoRA of rank 8", "1,000", "1.0", "85.00", "90.00", "100%", "-"],
        ["LoRA of rank 1", "125", "8.0", "60.00", "70.00", "50%", "-"],
        ["core, p = 16, phi = 4, k = 32", "250", "4.0", "80.00", "80.00", "75%", "0.00"],
        ["core, p = 8, phi = 4, k = 32", "50", "20.0", "70.00", "60.00", "25%", "0.00"],
    ]
    assert sizes.size_table([RUN], [], initial=1) == ""


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    variant.add_options(parser)
    return parser.parse_args(arguments)


def numbers() -> ComparisonSettings:
    training = TrainingSettings(max_steps=1, learning_rate=1e-3)
    return ComparisonSettings(
        head=training, lora=training, coefficients=training, k=40, method=TaskMethod(p=16, phi=4)
    )


def test_a_variant_has_room_for_all_tasks() -> None:
    assert variant.vary(numbers(), options(), tasks=7) == numbers(), "24 and four times four"
    found = variant.vary(numbers(), options("--p", "8", "--phi", "2", "--core-rate", "3e-2"), 7)
    assert (found.method.p, found.method.phi, found.k) == (8, 2, 24 + 4 * 2)
    assert found.coefficients.learning_rate == 3e-2
    assert found.lora.learning_rate == 1e-3
    assert variant.vary(numbers(), options("--k", "12", "--lora", "1"), 7).k == 12


def test_a_variant_of_lora_keeps_its_own_loras_apart() -> None:
    assert variant.own_folder(Path("own-0"), options("--p", "3")) == Path("own-0")
    found = variant.own_folder(Path("own-0"), options("--rank", "2", "--lora", "1e-3"))
    assert found == Path("own-0-rank2-lora0.001")
    assert not variant.is_varied(options())
    assert variant.is_varied(options("--rank", "2"))


def test_sizes_of_the_core_are_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    rates.add_options(parser, [1e-3], [1e-2])
    assert parser.parse_args(["--sizes", "11,5", "8,8"]).sizes == [(11, 5), (8, 8)]
    with pytest.raises(SystemExit):
        parser.parse_args(["--sizes", "11"])
    assert "--sizes" in capsys.readouterr().err
