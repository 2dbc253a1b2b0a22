"""All methods under one interface: scores, forgetting, counts, bytes, seeds, old data."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from compare.conftest import Everything
from compare.streams import LORA, SHAPES, jobs, net, settings
from sharespace.compare import all_methods, run
from sharespace.compare.comparison import Comparison
from sharespace.stream.measures import forgetting

LABELS = {"task0": 2, "task1": 3, "task2": 4}
HEADS = {name: 21 * labels for name, labels in LABELS.items()}
RANK = 2
ONE_STEP = {
    "head_only",
    "per_task_lora",
    "warm_lora",
    "joint_lora",
    "mean_adapter",
    "task_arithmetic",
    "ties",
    "own_svd",
    "projection",
    "random_basis",
}


def test_every_method_scores_every_task(everything: Everything) -> None:
    assert set(everything.outcomes) == set(all_methods())
    for name, outcome in everything.outcomes.items():
        assert outcome.method == name
        assert set(outcome.matrix.last) == set(LABELS)
        assert (len(outcome.matrix.steps) == 1) == (name in ONE_STEP)
        assert outcome.heads == HEADS
        assert outcome.stored.heads == 4 * sum(HEADS.values())
    rows = tuple(o.row(seed=0) for o in everything.outcomes.values())
    assert len(Comparison(rows).summary()) == len(all_methods())


def test_one_lora_in_sequence_forgets_and_share_does_not(everything: Everything) -> None:
    found = {n: forgetting(o.matrix) for n, o in everything.outcomes.items() if n not in ONE_STEP}
    assert found["sequential_lora"] > 5
    assert abs(found["share_strict"]) <= 1
    for better in ("o_lora", "ewc"):
        assert found[better] < found["sequential_lora"]


def test_training_helps(everything: Everything) -> None:
    mean = {n: sum(o.matrix.last.values()) / 3 for n, o in everything.outcomes.items()}
    assert mean["per_task_lora"] > mean["head_only"] + 3
    assert mean["per_task_lora"] > mean["mean_adapter"] + 2
    assert mean["share_strict"] > mean["head_only"]
    assert mean["share_full"] > mean["share_strict"] - 1
    assert mean["joint_lora"] > mean["head_only"]


def test_counts_are_those_of_the_hand(everything: Everything) -> None:
    found = {name: list(o.trainable.values()) for name, o in everything.outcomes.items()}
    lora = RANK * LORA
    assert found["head_only"] == [0, 0, 0]
    for name in ("per_task_lora", "joint_lora", "sequential_lora", "o_lora", "ewc", "replay"):
        assert found[name] == [lora] * 3
    # Two modules, k = 6 on both sides, p = 4.
    assert found["random_basis"] == [2 * (6 + 6) * 4] * 3
    assert everything.outcomes["random_basis"].paper_count == 2 * (6 + 6) * 4
    # Built from two adapters of rank 2: k = 4, and one temporary direction a side.
    coefficients, temporary = 2 * (5 + 5) * 4, LORA
    assert found["share_strict"] == [lora, lora, coefficients + temporary]
    assert everything.outcomes["share_strict"].paper_count == coefficients
    # 0, 1/3 and 2/3 of the directions are frozen, one at least: U, S and V of the others.
    osf = [
        sum((n + d + 1) * (min(n, d) - max(1, min(n, d) * t // 3)) for n, d in SHAPES.values())
        for t in range(3)
    ]
    assert found["osf"] == osf


def test_bytes_are_those_of_the_hand(everything: Everything) -> None:
    stored = {name: o.stored for name, o in everything.outcomes.items()}
    lora = 4 * RANK * LORA
    assert stored["head_only"].total == stored["head_only"].heads
    for name in ("joint_lora", "sequential_lora", "ewc", "replay", "ties"):
        assert stored[name].adapters == lora
    for name in ("per_task_lora", "o_lora", "mean_adapter", "task_arithmetic"):
        assert stored[name].adapters == 3 * lora
    assert stored["osf"].adapters == 4 * sum(n * d for n, d in SHAPES.values())
    assert stored["random_basis"].basis == 4 * 6 * LORA
    assert stored["random_basis"].coefficients == 3 * 4 * 2 * (6 + 6) * 4
    assert stored["ewc"].state == 2 * lora
    # 2 % of 160 examples is 4, of ten floats and an int64.
    assert stored["replay"].state == 3 * 4 * (10 * 4 + 8)
    share = stored["projection"].basis + stored["projection"].coefficients
    assert 0.7 * min(share, 3 * lora) < stored["own_svd"].adapters <= share


def test_only_those_that_say_so_read_old_data(everything: Everything) -> None:
    for name, reads in everything.reads.items():
        if name != "share_full":
            old = any(later < seed for seed, later in pairwise(reads))
            assert old == everything.outcomes[name].uses_old_data, name
    assert everything.outcomes["share_full"].uses_old_data
    trained_once = ("mean_adapter", "task_arithmetic", "ties", "own_svd", "projection")
    assert all(not everything.reads[name] for name in trained_once)


def test_one_seed_one_result_whatever_ran_before(everything: Everything) -> None:
    again = run(jobs(), settings(), ["o_lora", "share_strict"])
    for name, outcome in again.items():
        assert outcome.matrix == everything.outcomes[name].matrix


def test_share_full_keeps_what_is_better_on_examples_set_aside(everything: Everything) -> None:
    wild = replace(settings().coefficients, learning_rate=50.0)
    chosen = settings(finetune=wild, held_out=0.3)
    found = run(jobs(), chosen, ["share_full"], own=everything.bench.own)["share_full"]
    strict = everything.outcomes["share_strict"].matrix
    assert found.matrix.last == strict.last


def test_all_models_are_as_they_were(everything: Everything) -> None:
    for name, labels in LABELS.items():
        model, fresh = everything.bench.fresh(name), net(labels).state_dict()
        assert set(model.state_dict()) == set(fresh)
        assert all(torch.equal(v, fresh[k]) for k, v in model.state_dict().items())


def test_own_adapters_are_taken_as_they_are(everything: Everything) -> None:
    turned = list(reversed(jobs()))
    found = run(turned, settings(), ["per_task_lora", "projection"], own=everything.bench.own)
    first = everything.outcomes["per_task_lora"]
    assert found["per_task_lora"].matrix.last == first.matrix.last
    assert list(found["per_task_lora"].matrix.tasks) == ["task2", "task1", "task0"]
    assert found["per_task_lora"].adapters["task1"] is first.adapters["task1"]


def test_an_outcome_is_plain_values(everything: Everything) -> None:
    record = everything.outcomes["ewc"].to_record()
    assert record["method"] == "ewc"
    assert record["stored"]["total"] == everything.outcomes["ewc"].stored.total
    assert record["steps"] == 150


@pytest.mark.parametrize("name", ["per_task_lora", "joint_lora", "sequential_lora", "osf"])
def test_the_same_number_of_steps(everything: Everything, name: str) -> None:
    assert everything.outcomes[name].steps == 3 * 50
