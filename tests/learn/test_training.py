"""Training with the Trainer."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from learn.nets import FACTORS, Points, accuracy, logits, net, shared
from sharespace.errors import MissingExtraError, OptionError
from sharespace.learn import Setup, TaskMethod, TrainingSettings, adapt, fit, prepare

TRAINING = TrainingSettings(
    max_steps=60, learning_rate=3e-2, per_device_train_batch_size=16, use_cpu=True
)


def wrapped(phi: int = 1, dropout: float = 0.0) -> Any:
    """A net with a new task. The Share model must live as long as the model's configuration."""
    return prepare(
        net(),
        shared(),
        "new",
        TaskMethod(p=2, phi=phi, dropout=dropout, **FACTORS),
    )


def test_trains_in_the_subspace_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    model = wrapped()
    frozen = {n: q.clone() for n, q in model.named_parameters() if not q.requires_grad}
    before = accuracy(model)
    result = fit(model, Points(), TRAINING)
    assert accuracy(model) > max(0.7, before + 0.2)
    assert all(torch.equal(q, model.get_parameter(n)) for n, q in frozen.items())
    assert result.steps == 60
    assert result.loss > 0
    assert result.seconds > 0
    assert not model.training
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_wrapper_that_leaves_parts_of_the_model_is_refused_before_the_training() -> None:
    class Sharded(Trainer):  # type: ignore[misc]
        """As accelerate launches it with FSDP, which it does on accelerators alone."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.is_fsdp_enabled = True

    model = wrapped()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(OptionError, match=r"^version 1 of FSDP: .*MergeIntoShare$"):
        fit(model, Points(), TRAINING, Setup(trainer=Sharded))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_seed_gives_one_result() -> None:
    first, second = net(), net()
    for model in (first, second):
        fit(model, Points(), TRAINING)
    assert torch.equal(first.classifier.weight, second.classifier.weight)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sharespace\[train\]'"):
        fit(net(), Points(), TRAINING)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(OptionError, match="requires a gradient"):
        fit(net().requires_grad_(False), Points(), TRAINING)


class Scripted:
    """Metrics that come in a given order, and the weights at each evaluation."""

    def __init__(self, name: str, values: list[float]) -> None:
        self.name, self.left = name, list(values)
        self.weights: list[Tensor] = []

    def setup(self) -> Setup:
        outer = self

        class Watch(TrainerCallback):  # type: ignore[misc]
            def on_evaluate(self, *_args: Any, model: nn.Module, **_kwargs: Any) -> None:
                outer.weights.append(logits(model))

        return Setup(evaluation=Points(20), metrics=self.metrics, callbacks=[Watch()])

    def metrics(self, _: Any) -> dict[str, float]:
        return {self.name: self.left.pop(0)}


@pytest.mark.parametrize(
    ("best", "smaller", "values", "stops", "kept"),
    [
        ("accuracy", None, [0.1, 0.9, 0.8, 0.7, 1.0], 20, 1),
        ("mse", True, [3.0, 2.0, 1.0, 2.0, 1.5, 9.0], 25, 2),
        ("other_loss", None, [1.0, 2.0, 3.0, 4.0], 15, 0),
    ],
)
def test_stops_early_and_keeps_the_best(
    best: str, smaller: bool | None, values: list[float], stops: int, kept: int
) -> None:
    model, script = wrapped(), Scripted(best, values)
    training = replace(
        TRAINING,
        early_stopping_patience=2,
        eval_steps=5,
        metric_for_best_model=best,
        greater_is_better=None if smaller is None else not smaller,
    )
    result = fit(model, Points(), training, script.setup())
    assert result.steps == stops
    assert torch.equal(logits(model), script.weights[kept])
    assert not torch.equal(script.weights[kept], script.weights[-1])
    scores = [entry[f"eval_{best}"] for entry in result.history if f"eval_{best}" in entry]
    assert scores == values[: stops // 5]


def test_the_loss_decides_where_nothing_else_is_named() -> None:
    model, points = net(), Points()
    # Learns in the wrong direction: the first evaluation is the best one.
    training = replace(
        TRAINING, learning_rate=5.0, early_stopping_patience=1, eval_steps=2, warmup_ratio=0.0
    )
    result = fit(model, points, training, Setup(evaluation=points))
    losses = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    with torch.no_grad():
        kept = float(model(x=points.x, labels=points.labels)["loss"])
    assert kept == pytest.approx(min(losses), rel=1e-5)
    assert result.steps < 60


def test_patience_needs_something_to_decide_by() -> None:
    with pytest.raises(OptionError, match="no evaluation data"):
        fit(net(), Points(), replace(TRAINING, early_stopping_patience=2))
    with pytest.raises(OptionError, match="nothing measures 'accuracy'"):
        fit(
            net(),
            Points(),
            replace(TRAINING, early_stopping_patience=2, metric_for_best_model="accuracy"),
            Setup(evaluation=Points()),
        )


def test_evaluation_data_is_evaluated_on() -> None:
    training = replace(TRAINING, max_steps=5, eval_steps=2)
    result = fit(net(), Points(), training, Setup(evaluation=Points(8)))
    assert [e["step"] for e in result.history if "eval_loss" in e] == [2, 4, 5]


class Recorder(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, *_args: Any, logs: dict[str, float], **_kwargs: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []


LOGGED = replace(TRAINING, logging_steps=2, arguments={"logging_strategy": "steps"})


def test_callbacks_and_the_history_see_what_is_logged() -> None:
    recorder = Recorder()
    training = replace(LOGGED, max_steps=6)
    result = fit(wrapped(), Points(), training, Setup(callbacks=[recorder]))
    assert len(recorder.losses) == 3
    assert [e["loss"] for e in result.history if "loss" in e] == recorder.losses


def test_trackers_get_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="the tracker of this test is tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "log"))
    fit(net(), Points(), replace(TRAINING, max_steps=4, report_to=("tensorboard",)))
    assert list((tmp_path / "log").rglob("events.out.tfevents.*"))


class StopAt(TrainerCallback):  # type: ignore[misc]
    """Somebody pulls the plug."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, _args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        control.should_training_stop |= state.global_step >= self.step


def test_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path: Path) -> None:
    arguments = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 5}
    training = replace(TRAINING, max_steps=12, arguments=arguments)
    share = shared()

    def model() -> Any:
        return prepare(net(), share, "new", TaskMethod(p=2, phi=1, dropout=0.3, **FACTORS))

    whole, stopped, resumed = model(), model(), model()
    fit(whole, Points(), replace(training, arguments={}))
    fit(stopped, Points(), training, Setup(callbacks=[StopAt(7)]))
    assert not torch.equal(logits(whole), logits(stopped))
    result = fit(resumed, Points(), training, Setup(resume=tmp_path / "checkpoint-5"))
    assert result.steps == 12
    assert torch.equal(logits(whole), logits(resumed))


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    whole, parts = wrapped(), wrapped()
    fit(whole, Points(), replace(TRAINING, max_steps=6))
    accumulated = replace(TRAINING, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    fit(parts, Points(), replace(accumulated, max_steps=6))
    assert torch.allclose(logits(whole), logits(parts), atol=1e-4)


def test_bf16_is_a_flag() -> None:
    plain = adapt(
        net(),
        shared(),
        Points(),
        TRAINING,
        task="x",
        method=TaskMethod(p=2, **FACTORS),
    )
    training = replace(TRAINING, bf16=True)
    learned = adapt(
        net(),
        shared(),
        Points(),
        training,
        task="x",
        method=TaskMethod(p=2, **FACTORS),
    )
    assert accuracy(learned.model) > accuracy(net()) + 0.2
    assert learned.adapter.dtype == torch.float32
    assert learned.fit.loss != plain.fit.loss
    assert learned.fit.loss == pytest.approx(plain.fit.loss, rel=0.05)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(10, 14), nn.BatchNorm1d(14)
        self.second, self.classifier = nn.Linear(14, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(torch.tanh(self.second(self.norm(self.first(x)))))
        loss = nn.functional.cross_entropy(logits, labels) if labels is not None else logits.sum()
        return {"loss": loss, "logits": logits}


def test_statistics_of_frozen_batch_norms_belong_to_the_base_model() -> None:
    torch.manual_seed(0)
    model = Normed()
    before = {n: b.clone() for n, b in model.named_buffers()}
    adapt(model, shared(), Points(), replace(TRAINING, max_steps=4), task="new")
    assert all(torch.equal(b, dict(model.named_buffers())[n]) for n, b in before.items())
    free = Normed()
    fit(free, Points(), replace(TRAINING, max_steps=4))
    assert not torch.equal(free.norm.running_mean, before["norm.running_mean"])  # type: ignore[arg-type]
