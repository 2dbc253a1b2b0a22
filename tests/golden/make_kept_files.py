"""Makes ``kept``: one of everything that users keep on disk, for every later release to read.

It was run at commit c35270f (sharespace 0.1.0), before the modules moved and ``sharespace.nn``
became ``sharespace.tuner``; its releases of PyTorch, transformers and PEFT are in
``expected.json``. Run it once; it refuses to overwrite.

The numbers in ``expected.json`` are those of the objects that were saved, of trainings that were
never stopped, and of a stream that ran to its end; ``test_kept_files`` loads, resumes, compares.

::

    base                    a BERT of one layer, and its tokenizer
    tasks.share             tasks a and b in version 1, c in version 2, which has other bases
    factors, core, ...      adapters trained in version 1, without and with their bases
    trainer, adapt          a checkpoint of a plain Trainer, and one of ``adapt``
    inbox                   contributions: in the bases of version 1, and as plain factors
    router.safetensors      a router of two tasks
    recipe.yaml             a stream, with data, adapters, stream.share and stream.share.run;
                            it was stopped after the second of its three steps
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

import sharespace
from golden.test_kept_files import (
    ADAPTERS,
    FOLDER,
    SAVED,
    VOCABULARY,
    adapted,
    base,
    command,
    logits,
    routed,
    streamed,
    task_logits,
    tokens,
    trainer,
)
from sharespace import Share, ShareConfig
from sharespace.learn import Setup, merge_from
from sharespace.route import Router, Statistics, features
from sharespace.stream import Event, run
from stream import world

SIDE = 8
MODULES = [f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "value")]
RECIPE = """\
base: base
share: stream.share
router: true
k: 4
p: 2
phi: 1
lora_rank: 2
target_modules: [query, value]
max_length: 16
learning_rate: 3e-2
lora_learning_rate: 3e-2
max_steps: 20
per_device_train_batch_size: 8
use_cpu: true
tasks:
- {name: colour, data: data/colour}
- {name: legal, adapter: adapters/legal}
- {name: size, data: data/size}
"""


class Elsewhere(transformers.TrainerCallback):  # type: ignore[misc]
    """Moves all that is trained before the first step: who does not load the checkpoint, but
    begins anew, ends elsewhere. Remembers what the model says when a checkpoint is written."""

    saved: Any = None

    def on_train_begin(self, *_: Any, **known: Any) -> None:
        move(known["model"], seed=11)

    def on_save(self, *_: Any, **known: Any) -> None:
        self.saved = self.saved or logits(known["model"])
        known["model"].train()


class Stopped(BaseException):
    """Not an Exception, so that nothing handles it."""


def move(model: Any, seed: int) -> None:
    """As after training: everything that is trained has other values."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=draw)


def make_base() -> None:
    """Without dropout, so that the training depends on no random generator but the data's."""
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=SIDE,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=SIDE,
        max_position_embeddings=32,
        initializer_range=0.4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained("base")
    world.make_tokenizer(Path("base"))


def make_share(adapters: Path) -> None:
    """Two versions, without a cap: what is merged is merged exactly."""
    for seed, name in enumerate(("a", "b", "c", "lora")):
        world.make_adapter(adapters / name, seed, labels=2, modules=MODULES, side=SIDE)
    share = Share.from_adapters([adapters / "a", adapters / "b"], variance=1)
    share.save("tasks.share")
    share.merge(adapters / "c").save()


def make_adapters() -> dict[str, Any]:
    found = {}
    for seed, name in enumerate(ADAPTERS):
        form: Any = name.partition("-")[0]
        config = ShareConfig(
            share="tasks.share",
            share_version=1,
            task=name,
            p=2,
            phi=1,
            form=form,
            save_basis=name.endswith("basis"),
            task_type="SEQ_CLS",
        )
        model = peft.get_peft_model(base(), config)
        move(model, seed)
        found[name] = logits(model)
        model.save_pretrained(name)
    return found


def make_trainer() -> dict[str, Any]:
    elsewhere = Elsewhere()
    whole = trainer("trainer", [elsewhere])
    whole.train()
    merged = merge_from(Share.load("tasks.share"), whole.model)
    merged.save("trainer.share")
    return {
        "saved": elsewhere.saved,
        "end": logits(whole.model),
        "merged": task_logits("trainer.share", "resumed"),
    }


def make_adapt() -> dict[str, Any]:
    found = adapted(Share.load("tasks.share", 1), "adapt", Setup(callbacks=[Elsewhere()]))
    Share.load("tasks.share").merge(found.adapter).save("adapt.share")
    return {"end": logits(found.model), "merged": task_logits("adapt.share", "adapted")}


def make_inbox(adapters: Path) -> dict[str, Any]:
    """What is merged says what the adapter said."""
    sent = [
        command("submit", "factors", "inbox"),
        command("submit", "core-basis", "inbox"),
        command("submit", "core", "inbox", "--plain"),
        command("submit", str(adapters / "lora"), "inbox"),
    ]
    plain = peft.PeftModel.from_pretrained(base(), str(adapters / "lora"))
    return {"ids": {one["task"]: one["id"] for one in sent}, "lora": logits(plain)}


def make_router() -> dict[str, Any]:
    seen = [features(base(), [{"input_ids": tokens(30, first)}]) for first in (0, 4)]
    router = Router(shrinkage=0.05)
    for name, found in zip(("one", "two"), seen, strict=True):
        router = router.with_task(name, Statistics.from_features(found[:20]))
    router = router.with_fallback_rate(0.2, torch.cat([found[20:] for found in seen]))
    router.save("router.safetensors")
    return dict(routed("router.safetensors"))


def make_run() -> dict[str, Any]:
    """Stopped here; run to its end in a copy that was never stopped."""
    Path("recipe.yaml").write_text(RECIPE)
    for seed, name in enumerate(("colour", "size")):
        world.make_classes(Path("data") / name, 2, seed, train=24, test=12)
    world.make_adapter(Path("adapters/legal"), 9, modules=MODULES, side=SIDE)
    with tempfile.TemporaryDirectory() as place:
        here = Path.cwd()
        for name in ("base", "data", "adapters"):
            shutil.copytree(name, Path(place) / name)
        shutil.copy("recipe.yaml", place)
        os.chdir(place)
        found = streamed()
        os.chdir(here)

    def stop(event: Event) -> None:
        if (event.stage, event.task) == ("committed", "legal"):
            raise Stopped

    try:
        run("recipe.yaml", observe=stop)
    except Stopped:
        return dict(found)
    raise AssertionError("the stream was not stopped")


def tidy() -> None:
    """Without locks, which name the machine, model cards, and what only the maker needed."""
    for name in ("trainer", "adapt"):
        shutil.rmtree(f"{name}.share")
        for path in Path(name).iterdir():
            if path.name != f"checkpoint-{SAVED}":
                shutil.rmtree(path)
    for pattern in ("lock", "README.md"):
        for path in list(Path().rglob(pattern)):
            path.unlink()


def make(folder: Path) -> None:
    """Write everything to a new folder."""
    folder.mkdir()
    os.chdir(folder)
    torch.set_num_threads(1)
    make_base()
    with tempfile.TemporaryDirectory() as place:
        adapters = Path(place)
        make_share(adapters)
        measured: dict[str, Callable[[], Any]] = {
            "adapters": make_adapters,
            "trainer": make_trainer,
            "adapt": make_adapt,
            "inbox": lambda: make_inbox(adapters),
            "router": make_router,
            "run": make_run,
        }
        numbers = {name: measure() for name, measure in measured.items()}
    tidy()
    versions = {
        "commit": "c35270f",
        **{m.__name__: m.__version__ for m in (sharespace, torch, transformers, peft)},
    }
    text = json.dumps({"made by": versions, **numbers}, indent=1)
    Path("expected.json").write_text(text + "\n")


if __name__ == "__main__":
    make(FOLDER)
