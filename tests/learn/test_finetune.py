"""Known tasks trained on, bases frozen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders import dense
from learn.nets import (
    FACTORS,
    Points,
    accuracy,
    adapter,
    logits,
    net,
    same,
    shared,
    snapshot,
    unchanged,
)
from sharespace import Share
from sharespace.errors import MismatchError, OptionError, TaskNotFoundError
from sharespace.learn import Finetuned, Setup, TaskMethod, TrainingSettings, finetune, load_task
from sharespace.learn.adapt import adapt
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.coefficients import Core, Factors, PerTask

TRAINING = TrainingSettings(
    max_steps=40, learning_rate=3e-2, per_device_train_batch_size=16, use_cpu=True
)
HEAD = "base_model.model.classifier.weight"


def with_head(name: str, seed: int, rank: int = 2) -> Adapter:
    made, head = adapter(name, seed, rank, 0.1), net(seed).classifier
    kept = {HEAD: head.weight.detach(), "base_model.model.classifier.bias": head.bias.detach()}
    return Adapter.from_updates(
        name, {m: made.layer(m) for m in made.shapes}, base=made.base, kept=kept,
        config={"modules_to_save": ["classifier"]},
    )  # fmt: skip


def share_of(kind: str) -> Share:
    """Task "a" with coefficients of one kind in both modules."""
    if kind == "factors":
        return Share.from_adapters([with_head("a", 1), with_head("b", 2)], k=4)
    if kind == "core":
        return Share.from_adapters([with_head("a", 1, 3), with_head("b", 2, 3)], k=3)
    share = share_of("factors")
    own = {
        m: PerTask(u.up.float(), u.down.mT.float().contiguous())
        for m, u in share.updates("a").items()
    }
    task = replace(share.task("a"), coefficients=own)
    return Share(share.model.with_tasks([task, share.task("b")]))


KINDS = {"factors": Factors, "core": Core, "private": PerTask}


def trained(share: Share, *, heads: bool = True) -> Finetuned:
    return finetune(net(), share, Points(), TRAINING, task="a", heads=heads)


def test_what_is_not_better_is_not_kept() -> None:
    share = share_of("factors")
    setup = Setup(evaluation=Points())
    good = finetune(net(), share, Points(), TRAINING, task="a", keep="better", setup=setup)
    assert good.kept
    assert not same(good.share.task("a").coefficients, share.task("a").coefficients)
    wild = replace(TRAINING, learning_rate=50.0)
    bad = finetune(net(), good.share, Points(), wild, task="a", keep="better", setup=setup)
    assert not bad.kept
    assert bad.share is good.share


def test_better_needs_something_to_be_judged_by() -> None:
    share = share_of("factors")
    with pytest.raises(OptionError, match="evaluation"):
        finetune(net(), share, Points(), TRAINING, task="a", keep="better")
    named = replace(TRAINING, metric_for_best_model="accuracy")
    setup = Setup(evaluation=Points())
    with pytest.raises(OptionError, match="nothing measures it"):
        finetune(net(), share, Points(), named, task="a", keep="better", setup=setup)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_task_s_coefficients_and_heads_change(kind: str) -> None:
    share = share_of(kind)
    before = accuracy(load_task(net(), share, "a"))
    result = trained(share)
    assert accuracy(result.model) > before + 0.15
    after = result.share
    for module, layer in share.model.layers.items():
        assert after.model.layers[module] is layer
        assert isinstance(after.task("a").coefficients[module], KINDS[kind])
    assert same(after.task("b").coefficients, share.task("b").coefficients)
    assert after.task("b").ledger is share.task("b").ledger
    assert not same(after.task("a").coefficients, share.task("a").coefficients)
    assert not torch.equal(after.task("a").kept[HEAD], share.task("a").kept[HEAD])
    again = load_task(net(), after, "a")
    assert torch.allclose(logits(again), logits(result.model), atol=1e-4)
    assert result.trainable.temporary == 0
    # A module: E and F, k x p each; the core as it is, k x k; what weighs two private directions.
    numbers = {"factors": 2 * 4 * 2, "core": 3 * 3, "private": 2 * (4 + 2) * 2}[kind]
    assert result.trainable.coefficients == 2 * numbers


def test_heads_stay_bit_for_bit_where_they_are_not_wanted() -> None:
    share = share_of("factors")
    result = trained(share, heads=False)
    assert torch.equal(result.share.task("a").kept[HEAD], share.task("a").kept[HEAD])
    assert result.trainable.heads == 0
    assert not same(result.share.task("a").coefficients, share.task("a").coefficients)


def test_the_ledger_starts_anew_and_the_old_bound_stays(tmp_path: Path) -> None:
    share = Share.from_adapters([with_head("a", 1), with_head("b", 2)], k=3)
    before = share.task("a").ledger
    assert before.bound > 0.01
    result = trained(share)
    ledger = result.share.task("a").ledger
    assert ledger.bound < 1e-6
    assert ledger.earlier_bound == before.bound
    assert ledger.norms is before.norms
    result.share.save(tmp_path / "x.share")
    stored = Share.load(tmp_path / "x.share")
    assert stored.task("a").ledger.events == ("init", "finetune")
    assert stored.task("a").ledger.earlier_bound == before.bound
    assert same(stored.task("a").coefficients, result.share.task("a").coefficients)
    merged = stored.merge(with_head("c", 3))
    goes_on = merged.task("a").ledger
    assert goes_on.events == ("init", "finetune", "merge")
    assert goes_on.earlier_bound == before.bound
    assert goes_on.bound > 0.01
    errors = [
        float((dense(u) - dense(stored.updates("a")[m])).norm())
        for m, u in merged.updates("a").items()
    ]
    for error, bound in zip(errors, goes_on.bounds.tolist(), strict=True):
        assert error <= bound * (1 + 1e-6)
    measured = merged.fidelity().tasks["a"]
    assert measured.relative_error <= measured.bound * (1 + 1e-9)


def test_a_learned_task_is_trained_on_after_its_merge() -> None:
    share = shared()
    learned = adapt(
        net(),
        share,
        Points(),
        TRAINING,
        task="new",
        method=TaskMethod(p=3, phi=2, **FACTORS),
    )
    merged = share.merge(learned.adapter)
    at_the_cap = load_task(net(), merged, "new")
    points = Points()

    def loss(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(model(x=points.x, labels=points.labels)["loss"])

    full = finetune(net(), merged, points, TRAINING, task="new")
    assert loss(full.model) < loss(at_the_cap)


def test_what_is_refused_or_fails_leaves_the_model_usable() -> None:
    share, model = share_of("factors"), net()
    before = snapshot(model)
    with pytest.raises(TaskNotFoundError):
        finetune(model, share, Points(), TRAINING, task="c")
    assert unchanged(model, before)
    with pytest.raises(MismatchError):
        finetune(net(hidden=15), share, Points(), TRAINING, task="a")
    with pytest.raises(TypeError, match="vars"):
        finetune(model, share, [None], TRAINING, task="a")
    assert unchanged(model, before, flags=False)
    assert finetune(model, share, Points(), TRAINING, task="a").fit.steps == 40
