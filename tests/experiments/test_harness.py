"""The harness of the experiments on a toy one, and its tables."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.__main__ import ROOT, own
from experiments.harness import cached, numbers, other_numbers, trials
from experiments.harness.numbers import Numbers
from experiments.harness.results import write
from experiments.harness.stages import class_of
from experiments.harness.tables import scores

from experiments import EXPERIMENTS
from experiments_calls import call
from sharespace.compare import ComparisonSettings
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
    found = other_numbers.with_slower(RUN, [again, other])
    assert scores(found, "sequential_lora")["a"] == 60.0
    assert scores(found, "joint_lora")["a"] == 70.0
    assert scores(found, "ewc")["a"] == 61.0
    assert scores(found, "per_task_lora")["a"] == 80.0, "own LoRA has its rate"
    table = other_numbers.slower_table([RUN], [again, other])
    assert "| forward | 0 | sequential_lora | 0.008: 10.00; 0.001: 60.00 |" in table
    assert "| forward | 0 | ewc | 0.001: 61.00 |" in table
    assert other_numbers.slower_table([RUN], [other]) == ""


def test_sizes_are_compared_on_what_was_learned(tmp_path: Path) -> None:
    small = results(p=8, share_strict=method(50, a=80.0, b=60.0))
    write(tmp_path / "p8" / "mobile" / "forward-0.json", small)
    low = results(per_task_lora=method(125, a=50.0, b=70.0))
    low["settings"]["rank"] = 1
    write(tmp_path / "rank-1" / "mobile" / "forward-0.json", low)
    found = other_numbers.read_sizes(tmp_path, "mobile")
    lines = other_numbers.size_table([RUN], json.loads(json.dumps(found)), initial=1).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[3:-1]] for line in lines if "forward" in line]
    assert rows == [
        ["LoRA of rank 8", "1,000", "1.0", "85.00", "90.00", "100%", "-"],
        ["LoRA of rank 1", "125", "8.0", "60.00", "70.00", "50%", "-"],
        ["core, p = 16, phi = 4, k = 32", "250", "4.0", "80.00", "80.00", "75%", "0.00"],
        ["core, p = 8, phi = 4, k = 32", "50", "20.0", "70.00", "60.00", "25%", "0.00"],
    ]
    assert other_numbers.size_table([RUN], [], initial=1) == ""


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    numbers.add_options(parser)
    return parser.parse_args(arguments)


def settings(tasks: int) -> ComparisonSettings:
    made = Numbers(steps=1, batch_size=1, lora=1e-3, core=1e-2, p=16, phi=4, targets=("a",))
    return made.settings(0, tasks)


def test_a_variant_has_room_for_all_tasks() -> None:
    assert numbers.vary(settings(7), options(), 7) == settings(7)
    assert settings(7).k == 24 + 4 * 4
    varied = numbers.vary(settings(7), options("--p", "8", "--phi", "2", "--core-rate", "3e-2"), 7)
    assert (varied.method.p, varied.method.phi, varied.k) == (8, 2, 24 + 4 * 2)
    assert varied.coefficients.learning_rate == 3e-2
    assert varied.lora.learning_rate == 1e-3
    assert numbers.vary(settings(7), options("--k", "12", "--lora", "1"), 7).k == 12


def test_a_variant_of_lora_keeps_its_own_loras_apart() -> None:
    assert numbers.own_folder(Path("own-0"), options("--p", "3")) == Path("own-0")
    folder = numbers.own_folder(Path("own-0"), options("--rank", "2", "--lora", "1e-3"))
    assert folder == Path("own-0-rank2-lora0.001")
    assert not numbers.is_varied(options())
    assert numbers.is_varied(options("--core-rate", "2"))


def test_a_trial_changes_what_it_names() -> None:
    parser = argparse.ArgumentParser()
    trials.add_options(parser)
    asked = ["--core", "4", "2", "1e-2", "5", "--lora", "2", "3e-3", "6", "--lora", "4", "1", "7"]
    lora, _, core = trials.asked_for(parser.parse_args(asked))
    assert core.label == "core p=4 phi=2 rate=0.01 steps=5"
    changed = lora.applied(settings(7))
    assert (changed.rank, changed.lora_alpha, changed.lora.max_steps) == (2, 4, 6)
    assert changed.coefficients == settings(7).coefficients
    changed = core.applied(settings(7))
    assert (changed.method.p, changed.method.phi) == (4, 2)
    assert changed.coefficients.learning_rate == 1e-2


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(SystemExit, match="glue has no stage 'tune'; it has run"):
        call("tune", "glue")
    with pytest.raises(SystemExit, match="text_stream: run, tune"):
        call("run", "nothing")


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if (ROOT / n / "experiment.py").is_file()])
def test_every_experiment_is_registered(name: str) -> None:
    assert class_of(name, "experiment").name == class_of(name, "report").name == name
    text = (ROOT / name / "README.md").read_text()
    assert f"python -m experiments summarise {name}" in text
    assert all(f"experiments {stage} {name}" in text for stage in own(name))


def test_what_was_computed_is_kept_by_its_content(tmp_path: Path) -> None:
    content = {"a": torch.arange(3)}
    name = cached.digest(torch.zeros(2), torch.nn.Linear(1, 1), ("x", 1))
    assert name != cached.digest(torch.ones(2), torch.nn.Linear(1, 1), ("x", 1))
    for _ in range(2):
        made = [content]
        assert torch.equal(cached.cached(tmp_path, name, made.pop)["a"], content["a"])
    assert made == [content], "the second time it is read"
