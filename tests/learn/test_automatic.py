"""A learning rate that chooses itself: through ``adapt``, ``finetune`` and any Trainer."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from learn.nets import Net, Points, logits, net, shared
from sharespace.errors import OptionError
from sharespace.learn import (
    Adapted,
    Setup,
    TaskMethod,
    TrainingSettings,
    adapt,
    finetune,
    fit,
    prepare,
)
from sharespace.learn.automatic import BASE_RATES
from sharespace.learn.callbacks import AutoRate
from sharespace.learn.held_out import folds_of, held_out_split

TRAINING = TrainingSettings(
    max_steps=40, per_device_train_batch_size=16, weight_decay=0.0, use_cpu=True
)
METHOD = TaskMethod(
    p=3,
    phi=1,
    form="core",
    directions="gradient",
    head_steps=0,
    start="zero",
    heads=("classifier",),
)


def learn(
    data: object,
    training: TrainingSettings = TRAINING,
    setup: Setup | None = None,
    model: nn.Module | None = None,
) -> Adapted:
    return adapt(model or net(), shared(), data, training, task="new", method=METHOD, setup=setup)


def choice_of(learned: Adapted) -> Any:
    assert learned.fit.choice is not None
    return learned.fit.choice


def test_the_training_is_that_of_the_chosen_rate(caplog: pytest.LogCaptureFixture) -> None:
    data = Points(300)
    with caplog.at_level(logging.INFO, "sharespace.learn"):
        learned = learn(data)
    choice = choice_of(learned)
    assert choice.told() in caplog.text
    assert (choice.folds, choice.held_out, choice.steps) == (1, 45, 40)
    assert choice.learned
    assert choice.loss < choice.untrained
    assert learned.fit.steps == 40
    given = replace(TRAINING, learning_rate=choice.learning_rate, head_learning_rate=1e-3)
    assert torch.equal(logits(learned.model), logits(learn(data, given).model))


def test_few_examples_are_cross_validated() -> None:
    learned = learn(Points(48))
    choice = choice_of(learned)
    assert (choice.folds, choice.held_out) == (4, 48)
    assert 0 < choice.standard_error < choice.loss < choice.untrained
    assert learned.fit.steps == choice.stop_after <= choice.steps < 40


class Drawn(transformers.TrainerCallback):  # type: ignore[misc]
    """The state of torch's generator when training begins."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.state = torch.random.get_rng_state()


@pytest.mark.parametrize("count", [48, 300])
def test_choosing_draws_no_random_numbers(tmp_path: Path, count: int) -> None:
    """Samplers that draw from torch's own generator give the training the same batches."""
    before, after = Drawn(), Drawn()
    torch.manual_seed(0)
    transformers.Trainer(
        model=prepare(net(), shared(), "new", METHOD), args=arguments(tmp_path),
        train_dataset=Points(count), callbacks=[before, AutoRate(), after],
    ).train()  # fmt: skip
    assert torch.equal(before.state, after.state)


@pytest.mark.parametrize(("count", "part"), [(1000, 0.5), (256, 1.0), (32, 1.0)])
def test_what_choosing_costs(count: int, part: float) -> None:
    """Half of the training; for few examples at most that of 1000, which has as many steps."""
    choice = choice_of(learn(Points(count), replace(TRAINING, max_steps=200)))
    assert choice.cost <= part * 200


class Planted(Points):
    """Labels of noise, whose training can only overfit."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        generator = torch.Generator().manual_seed(3)
        self.labels = torch.randint(3, (count,), generator=generator)


def test_noise_stops_early() -> None:
    signal, noise = choice_of(learn(Points(64))), choice_of(learn(Planted(64)))
    assert noise.stop_after < signal.stop_after
    assert noise.loss > signal.loss + noise.standard_error


@pytest.mark.parametrize("count", [64, 600])
def test_trials_that_learn_nothing_leave_the_usual_rate(count: int) -> None:
    choice = choice_of(learn(Planted(count)))
    assert not choice.learned
    assert choice.learning_rate == BASE_RATES["core"]
    assert "the usual one" in choice.told()


def test_few_examples_do_not_collapse() -> None:
    """Labels of noise are learned by heart at a rate that is given; what is chosen stops before."""
    noise = Planted(200)
    few, others = torch.utils.data.Subset(noise, range(32)), slice(32, None)

    def loss(learned: Adapted) -> float:
        with torch.no_grad():
            result = learned.model(x=noise.x[others], labels=noise.labels[others])
        return float(result["loss"])

    longer = replace(TRAINING, max_steps=120)
    given = replace(longer, learning_rate=0.12, head_learning_rate=1e-3)
    automatic = loss(learn(few, longer))
    assert automatic < loss(learn(few, given)) - 0.1
    assert automatic < math.log(3) + 0.3


class Exploding(Net):
    """Its loss is not a number once a weight has moved far."""

    limit = 0.6

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        result = super().forward(x, labels)
        core: Tensor = next(p for n, p in self.named_parameters() if "sharespace_core" in n)
        if labels is not None and core.abs().max() > self.limit:
            result["loss"] = result["loss"] * math.nan
        return result


def exploding(limit: float) -> nn.Module:
    torch.manual_seed(0)
    model = Exploding()
    model.limit = limit
    return model


def test_a_rate_whose_loss_is_not_finite_is_dropped() -> None:
    learned = learn(Points(300), model=exploding(0.6))
    trials = {t.learning_rate: t.loss for t in choice_of(learned).trials}
    assert math.isinf(max(trials.values()))
    assert math.isfinite(trials[choice_of(learned).learning_rate])


def test_nothing_finite_is_refused() -> None:
    model = exploding(1e-9)
    with pytest.raises(OptionError, match="no rate that was tried gives a finite loss"):
        learn(Points(300), model=model)


def test_evaluation_data_judge_and_their_best_state_stays() -> None:
    evaluation = Points(64)
    learned = learn(Planted(300), setup=Setup(evaluation=evaluation))
    choice = choice_of(learned)
    assert choice.held_out == 64
    with torch.no_grad():
        loss = float(learned.model(x=evaluation.x, labels=evaluation.labels)["loss"])
    assert loss == pytest.approx(choice.loss, rel=1e-4)


def test_accumulated_bfloat16_steps() -> None:
    training = replace(
        TRAINING, bf16=True, gradient_accumulation_steps=2, per_device_train_batch_size=8
    )
    learned = learn(Points(300), training)
    assert choice_of(learned).loss < choice_of(learned).untrained


def test_finetune_chooses() -> None:
    share = shared().merge(learn(Points(64)).adapter)
    result = finetune(net(), share, Points(300), TRAINING, task="new")
    assert result.fit.choice is not None
    assert result.fit.choice.loss <= result.fit.choice.untrained


class Unlabelled(Points):
    """The model returns a loss without ``labels``."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index]}


class Reconstructing(Net):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        del labels
        return {"loss": (self.classifier(self.features(x)) - x[:, :3]).square().mean()}


@pytest.mark.parametrize("count", [48, 300])
def test_data_without_labels(count: int) -> None:
    torch.manual_seed(0)
    choice = choice_of(learn(Unlabelled(count), model=Reconstructing()))
    assert choice.loss < choice.untrained


class Streamed(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Any:
        points = Points(300)
        return (points[i] for i in range(300))


def test_data_without_a_length_need_evaluation_data() -> None:
    with pytest.raises(OptionError, match=r"no length.*Give Setup"):
        learn(Streamed())
    learned = learn(Streamed(), setup=Setup(evaluation=Points(64)))
    assert choice_of(learned).loss < choice_of(learned).untrained


def test_seven_examples_are_too_few() -> None:
    with pytest.raises(OptionError, match="7 examples are too few"):
        learn(Points(7))


def test_fit_itself_refuses() -> None:
    with pytest.raises(OptionError, match="only adapt, finetune, run and the callback AutoRate"):
        fit(net(), Points(), TRAINING)


def arguments(folder: Path, **more: Any) -> Any:
    return transformers.TrainingArguments(
        output_dir=str(folder), max_steps=40, per_device_train_batch_size=16, use_cpu=True,
        report_to="none", disable_tqdm=True, weight_decay=0.0, seed=0, **more,
    )  # fmt: skip


def trained(folder: Path, resume: str | None = None, **more: Any) -> tuple[nn.Module, AutoRate]:
    torch.manual_seed(0)
    model = prepare(net(), shared(), "new", METHOD)
    callback = AutoRate()
    trainer = transformers.Trainer(
        model=model, args=arguments(folder, **more), train_dataset=Points(300),
        callbacks=[callback],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return model, callback


def test_a_resumed_training_keeps_the_rate(tmp_path: Path) -> None:
    whole, callback = trained(tmp_path / "whole", save_steps=20)
    resumed, again = trained(tmp_path / "again", str(tmp_path / "whole" / "checkpoint-20"))
    assert callback.choice is not None
    assert again.choice == callback.choice
    assert torch.equal(logits(whole), logits(resumed))


def test_adapt_resumes_with_the_rate(tmp_path: Path) -> None:
    kept = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 20}
    training = replace(TRAINING, arguments=kept)
    setup = Setup(evaluation=Points(64))
    whole = learn(Points(300), training, setup)
    checkpoint = str(tmp_path / "checkpoint-20")
    resumed = learn(Points(300), training, replace(setup, resume=checkpoint))
    assert choice_of(resumed).trials == choice_of(whole).trials
    assert choice_of(resumed).stop_after == choice_of(whole).stop_after
    assert torch.equal(logits(whole.model), logits(resumed.model))


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    kept = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 20}
    training = replace(TRAINING, arguments=kept, learning_rate=1e-2)
    learn(Points(300), training)
    with pytest.raises(
        OptionError, match="wrote checkpoint 'checkpoint-20' did not choose its rate"
    ):
        learn(
            Points(300),
            replace(training, learning_rate="auto", head_learning_rate=1e-2),
            Setup(resume=str(tmp_path / "checkpoint-20")),
        )


def test_heads_have_a_rate_of_their_own(tmp_path: Path) -> None:
    """In the Trainer's own groups as in ``adapt``'s."""
    model, callback = trained(tmp_path)
    assert callback.choice is not None
    rate = callback.choice.learning_rate
    training = replace(
        TRAINING, learning_rate=rate, head_learning_rate=1e-3, max_steps=40, warmup_ratio=0.0
    )
    torch.manual_seed(0)
    given = prepare(net(), shared(), "new", METHOD)
    fit(given, Points(300), training)
    expected, actual = logits(given), logits(model)
    assert torch.allclose(expected, actual, rtol=1e-3, atol=1e-3)


class Unbalanced(Points):
    def __init__(self, classes: list[int]) -> None:
        super().__init__(sum(classes))
        self.labels = torch.tensor([n for n, count in enumerate(classes) for _ in range(count)])


@pytest.mark.parametrize("classes", [[90, 10], [50, 30, 20], [97, 2, 1]])
def test_held_out_examples_have_the_classes_in_proportion(classes: list[int]) -> None:
    data = Unbalanced([3 * count for count in classes])
    split = held_out_split(data, seed=1, trained=10_000)
    assert len(split.held_out) == 45
    assert sorted([*split.train, *split.held_out]) == list(range(300))
    parts = [split.held_out, *(fold.held_out for fold in folds_of(data, seed=1))]
    assert sorted(row for part in parts[1:] for row in part) == list(range(300))
    for part in parts:
        for label, count in enumerate(classes):
            proportion = sum(int(data.labels[row]) == label for row in part) / len(part)
            assert proportion == pytest.approx(count / 100, abs=1.5 / len(part))
