"""Training with the Trainer."""

from __future__ import annotations

import sys

import pytest
import torch

from learn.nets import Points, adapter, net
from sharespace import Share
from sharespace.errors import MissingExtraError
from sharespace.learn import Method, Training, fit, prepare

TRAINING = Training(steps=60, learning_rate=3e-2, batch_size=16, cpu=True)


def accuracy(model: torch.nn.Module) -> float:
    points = Points()
    with torch.no_grad():
        found = model(x=points.x)["logits"].argmax(dim=1) == points.labels
    return float(found.float().mean())


def test_trains_in_the_subspace_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    share = Share.from_adapters([adapter("a", 1), adapter("b", 2)], k=4)
    model = prepare(net(), share, "new", Method(p=2, phi=1))
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


def test_one_seed_gives_one_result() -> None:
    first, second = net(), net()
    for model in (first, second):
        fit(model, Points(), TRAINING)
    assert torch.equal(first.classifier.weight, second.classifier.weight)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sharespace\[train\]'"):
        fit(net(), Points(), TRAINING)
