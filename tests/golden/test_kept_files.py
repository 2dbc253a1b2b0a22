"""What users keep on disk is read, for ever: adapters, checkpoints, contributions, routers, runs.

The files in ``kept`` and the numbers beside them were made by ``make_kept_files``, before all
modules moved. Each is loaded here as a user loads it, in a copy that is the working directory,
because the files name each other by relative paths.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from sharespace import Share, ShareConfig
from sharespace.cli import main
from sharespace.learn import Setup, TaskMethod, TrainingSettings, adapt
from sharespace.learn.callbacks import MergeIntoShare
from sharespace.route import Router, features

FOLDER = Path(__file__).parent / "kept"
ADAPTERS = ("factors", "core", "factors-basis", "core-basis")
VOCABULARY, STEPS, SAVED = 28, 8, 4
READ, TRAINED = 1e-5, 1e-3
"""Tolerances: other processors and releases of PyTorch round differently, and training and a
router's distances multiply that."""

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:transformers.*"),
]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, which is the working directory; the Hub is not asked."""
    datasets: Any = pytest.importorskip("datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    shutil.copytree(FOLDER, tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    return tmp_path / "kept"


def expected(name: str) -> Any:
    """The numbers that were measured when the files were made."""
    return json.loads((FOLDER / "expected.json").read_bytes())[name]


def assert_near(found: Any, wanted: Any, tolerance: float, where: str = "") -> None:
    """Equal, numbers with a fraction up to the tolerance; nothing that was there may be missing."""
    if isinstance(wanted, Mapping):
        assert set(wanted) <= set(found), where
        for key in wanted:
            assert_near(found[key], wanted[key], tolerance, f"{where}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for at, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_near(one, other, tolerance, f"{where}/{at}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=tolerance, abs=tolerance), where
    else:
        assert found == wanted, where


def base() -> Any:
    """The base model of all files."""
    return transformers.AutoModelForSequenceClassification.from_pretrained("base").eval()


def tokens(rows: int = 5, first: int = 0) -> Tensor:
    """Inputs in closed form."""
    steps = [[(first + 7 * i + 5 * j + i * j) % VOCABULARY for j in range(6)] for i in range(rows)]
    return torch.tensor(steps)


def examples() -> list[dict[str, Tensor]]:
    """Data to train on; the label is in the second token."""
    return [{"input_ids": row, "labels": row[1] % 2} for row in tokens(32)]


def numbers(values: Tensor) -> Any:
    """As JSON has them."""
    return [[round(float(value), 6) for value in row] for row in values]


def logits(model: Any) -> Any:
    """What a model says to the same inputs every time."""
    model.eval()
    with torch.no_grad():
        return numbers(model(input_ids=tokens()).logits)


def task_logits(share: str, task: str) -> Any:
    """The same of a task that a stored Share model knows."""
    return logits(peft.get_peft_model(base(), ShareConfig(share=share, task=task)))


def trainer(folder: str, callbacks: list[Any]) -> Any:
    """A Trainer as a user would write it, that learns a task in version 1 of the Share model."""
    config = ShareConfig(
        share="tasks.share",
        share_version=1,
        task="resumed",
        p=2,
        phi=1,
        form="factors",
        task_type="SEQ_CLS",
    )
    arguments = transformers.TrainingArguments(
        output_dir=folder, max_steps=STEPS, save_steps=SAVED, learning_rate=0.03, seed=1,
        per_device_train_batch_size=4, use_cpu=True, report_to=[], disable_tqdm=True,
        logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    model = peft.get_peft_model(base(), config)
    return transformers.Trainer(model, arguments, train_dataset=examples(), callbacks=callbacks)


def adapted(share: Share, folder: str, setup: Setup) -> Any:
    """A task that ``adapt`` learns in the form "core", with checkpoints."""
    arguments = {"output_dir": folder, "save_strategy": "steps", "save_steps": SAVED}
    training = TrainingSettings(
        max_steps=STEPS,
        learning_rate=0.03,
        weight_decay=0.01,
        warmup_ratio=0.0,  # 0.06 of so few steps was rounded down to none when it was written.
        lr_scheduler_type="cosine",
        head_learning_rate=0.01,
        per_device_train_batch_size=4,
        use_cpu=True,
        arguments=arguments,
    )
    method = TaskMethod(
        p=3,
        phi=1,
        form="core",
        directions="random",
        head_steps=0,
        start="zero",
        task_type="SEQ_CLS",
    )
    return adapt(base(), share, examples(), training, task="adapted", method=method, setup=setup)


def command(*arguments: str) -> Any:
    """What ``sharespace`` prints as JSON."""
    said, told = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(told):
        patch.setattr(sys, "argv", ["sharespace", *arguments, "--json"])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code, told.getvalue()
    return json.loads(said.getvalue())


def lasting(record: Any) -> Any:
    """A result without times and without paths."""
    if isinstance(record, Mapping):
        left_out = ("seconds", "share", "path")
        return {key: lasting(value) for key, value in record.items() if key not in left_out}
    return [lasting(one) for one in record] if isinstance(record, list) else record


def streamed() -> Any:
    """The result of the recipe, run to its end, and what its tasks say."""
    found = lasting(command("run", "recipe.yaml"))
    said = {task: task_logits("stream.share", task) for task in found["tasks"]}
    return {
        "result": found,
        "logits": said,
        "router": routed("stream.share.run/router.safetensors"),
    }


def routed(path: str) -> Any:
    """Where a router sends inputs, and how near the call was."""
    router = Router.load(path)
    inputs = {"input_ids": tokens(9, first=3)}
    found = router.route(features(base(), [inputs]))
    return {
        "known": {name: statistics.count for name, statistics in router.tasks.items()},
        "shrinkage": router.shrinkage,
        "margin": router.margin,
        "tasks": list(found.tasks),
        "scores": numbers(found.scores),
        "margins": numbers(found.margins[:, None]),
    }


def files(*folders: Path) -> dict[Path, bytes]:
    """Every file below the folders, but for locks and the record of the recipe."""
    left_out = ("lock", "stream.json")
    found = (path for folder in folders for path in folder.rglob("*") if path.name not in left_out)
    return {path: path.read_bytes() for path in found if path.is_file()}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_says_what_it_said(kept: Path, name: str) -> None:
    """With its bases in its own file it needs no Share model, and it is not saved differently."""
    if name.endswith("basis"):
        shutil.rmtree("tasks.share")
    model: Any = peft.AutoPeftModelForSequenceClassification.from_pretrained(name)
    assert_near(logits(model), expected("adapters")[name], READ)
    written = json.loads((kept / name / "adapter_config.json").read_bytes())
    config = model.peft_config["default"]
    for key in ("task", "share", "share_version", "basis_id", "p", "phi", "form", "seed", "layout"):
        assert getattr(config, key) == written[key], key
    assert set(config.target_modules) == set(written["target_modules"])
    assert set(config.modules_to_save) == set(written["modules_to_save"])
    model.save_pretrained("again")
    before, after = (load_file(Path(f) / "adapter_model.safetensors") for f in (name, "again"))
    # Files say since which bases they belong to.
    assert set(after) == {*before, "base_model.model.sharespace_basis_id"}
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_checkpoint_of_trainer_is_an_adapter(kept: Path) -> None:
    model = peft.PeftModel.from_pretrained(base(), str(kept / f"trainer/checkpoint-{SAVED}"))
    assert_near(logits(model), expected("trainer")["saved"], READ)


@pytest.mark.usefixtures("kept")
def test_trainer_goes_on_from_its_checkpoint() -> None:
    """And its task is merged into the Share model, which has a newer version by now."""
    found = trainer("trainer", [MergeIntoShare("tasks.share")])
    done = found.train(resume_from_checkpoint=f"trainer/checkpoint-{SAVED}")
    assert done.global_step == STEPS
    assert_near(logits(found.model), expected("trainer")["end"], TRAINED)
    share = Share.load("tasks.share")
    assert (share.version, share.tasks) == (3, ("a", "b", "c", "resumed"))
    assert_near(task_logits("tasks.share", "resumed"), expected("trainer")["merged"], TRAINED)


def test_adapt_goes_on_from_its_checkpoint(kept: Path) -> None:
    resume = kept / f"adapt/checkpoint-{SAVED}"
    found = adapted(Share.load("tasks.share", 1), "adapt", Setup(resume=resume))
    assert found.fit.steps == STEPS
    assert_near(logits(found.model), expected("adapt")["end"], TRAINED)
    Share.load("tasks.share").merge(found.adapter).save()
    assert_near(task_logits("tasks.share", "adapted"), expected("adapt")["merged"], TRAINED)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.usefixtures("kept")
def test_an_adapter_can_be_handed_in(name: str) -> None:
    command("submit", name, "new-inbox")
    assert set(command("gather", "tasks.share", "new-inbox")["merged"]) == {name}
    assert_near(task_logits("tasks.share", name), expected("adapters")[name], READ)


def test_contributions_are_gathered_each_once(kept: Path) -> None:
    """Though the Share model's bases have changed since most of them were trained."""
    wanted, said = expected("inbox"), expected("adapters")
    found = command("gather", "tasks.share", "inbox")
    assert (found["version"], found["merged"], found["quarantined"]) == (3, wanted["ids"], [])
    for task in wanted["ids"]:
        assert_near(task_logits("tasks.share", task), said.get(task, wanted["lora"]), READ)
    assert Share.load("tasks.share").tasks[:3] == ("a", "b", "c")
    for path in (kept / "inbox" / "merged").iterdir():
        path.rename(kept / "inbox" / path.name)
    again = command("gather", "tasks.share", "inbox")
    assert (again["merged"], set(again["repeated"])) == ({}, set(wanted["ids"].values()))
    assert command("verify", "tasks.share", "--all")["ok"]


@pytest.mark.usefixtures("kept")
def test_a_router_sends_inputs_where_it_sent_them() -> None:
    assert_near(routed("router.safetensors"), expected("router"), TRAINED)


def test_a_stream_goes_on_after_its_second_step(kept: Path) -> None:
    """What it has learned is not learned again: nothing that was there changes."""
    record = json.loads((kept / "stream.share.run" / "stream.json").read_bytes())
    before = files(kept / "stream.share" / "objects", kept / "stream.share.run")
    assert_near(streamed(), expected("run"), TRAINED)
    goes_on = json.loads((kept / "stream.share.run" / "stream.json").read_bytes())
    # Keys of later releases may have come; all that was said is said still.
    assert {key: goes_on["recipe"].get(key) for key in record["recipe"]} == record["recipe"]
    for then, now in zip(record["tasks"], goes_on["tasks"], strict=True):
        assert {key: now.get(key) for key in then} == then
    after = files(kept / "stream.share" / "objects", kept / "stream.share.run")
    assert {path: after.get(path) for path in before} == before
    new = {path.name for path in set(after) - set(before) if path.parent.name == "steps"}
    assert new == {"0003.json"}
    assert command("verify", "stream.share", "--all")["ok"]


def test_a_stream_goes_on_after_its_first_lora(kept: Path) -> None:
    """As if it had been stopped before the first step was recorded."""
    place = kept / "stream.share.run"
    for path in (kept / "stream.share", place / "steps", place / "features"):
        shutil.rmtree(path)
    before = files(place)
    assert_near(streamed(), expected("run"), TRAINED)
    after = files(place)
    assert {path: after.get(path) for path in before} == before
