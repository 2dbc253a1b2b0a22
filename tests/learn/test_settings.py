"""What a task trains and how is checked where it is said, without PEFT and transformers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from sharespace.errors import OptionError
from sharespace.learn import TaskMethod, TrainingSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"p": 0}, "p=0"),
        ({"p": 2.5}, "whole number"),
        ({"phi": -1}, "phi=-1"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"form": "cores"}, "'factors', 'core'"),
        ({"heads": "classifier"}, r"Give \('classifier',\)"),
        ({"form": "factors", "directions": "gradient"}, "form='core'"),
        ({"known": 2, "start": "mean"}, "known=2"),
        ({"known": -1}, "at least 0"),
        ({"head_steps": 5, "heads": ()}, "no heads"),
        ({"form": "core", "p": 2, "phi": 3}, "phi=3"),
    ],
    ids=str,
)
def test_a_method_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TaskMethod(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 0}, "-1 counts by epochs"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"learning_rate": "fast"}, "a number or 'auto'"),
        ({"learning_rate": float("nan")}, "above 0"),
        ({"eval_steps": 0}, "at least 1"),
        ({"per_device_train_batch_size": 0}, "at least 1"),
        ({"warmup_steps": 2.5}, "whole numbers"),
        ({"bf16": True, "fp16": True}, "only one of them"),
        ({"early_stopping_patience": 0}, "at least 1"),
        ({"lr_scheduler_type": "cosinus"}, "'cosine'"),
        ({"arguments": {"learning_rate": 1.0}}, "Give learning_rate="),
    ],
    ids=str,
)
def test_a_training_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TrainingSettings(**values)


@pytest.mark.parametrize(("given", "warmup"), [(10, 10), (10.0, 10), (0.25, 25), (0, 6)])
def test_warm_up_is_given_in_steps_or_as_a_part(given: float, warmup: int) -> None:
    transformers = pytest.importorskip("transformers")
    settings = TrainingSettings(learning_rate=1e-3, max_steps=100, warmup_steps=given, use_cpu=True)
    arguments = transformers.TrainingArguments("unused", **settings.trainer_arguments())
    assert arguments.get_warmup_steps(100) == warmup


_WITHOUT_EXTRAS = """
import sys

sys.modules.update(dict.fromkeys(("peft", "transformers", "accelerate")))
from sharespace.errors import MissingExtraError
from sharespace.learn import TaskMethod, TrainingSettings
from sharespace.stream.recipe import parse_recipe

TaskMethod(p=4, form="core")
try:
    TrainingSettings(max_steps=3).trainer_arguments()
except MissingExtraError as error:
    print(error.remedy)
"""


def test_both_are_made_and_checked_without_the_extra() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _WITHOUT_EXTRAS], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "pip install 'sharespace[train]'"
