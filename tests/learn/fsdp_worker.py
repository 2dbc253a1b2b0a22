"""One of two processes of ``test_fsdp``: ``python fsdp_worker.py RANK PORT FOLDER``."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

WAYS = ("data parallel", "FSDP", "fully_shard")


def main(rank: int, port: int, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    import sharespace.tuner.sharding

    record = {}
    for way in WAYS:
        record[way] = trained_by_trainer(way, folder)
        record[f"{way}, by hand"] = by_hand(way, folder)
    sharespace.tuner.sharding.PATIENCE = 1.0
    record["one process"] = by_one_process(folder, rank)
    if rank == 0:
        (folder / "record.json").write_text(json.dumps(record))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def model(folder: Path, config: Any) -> Any:
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    with contextlib.redirect_stderr(io.StringIO()):
        base = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    return get_peft_model(base, config)


def share_config(store: Path, **options: Any) -> Any:
    from sharespace import ShareConfig

    return ShareConfig(share=str(store), p=2, phi=1, task_type="SEQ_CLS", **options)


def logits(model: Any) -> Any:
    x = torch.arange(24).reshape(4, 6) % 28
    with torch.no_grad():
        return model.eval()(input_ids=x).logits.tolist()


def examples() -> list[dict[str, torch.Tensor]]:
    return [
        {"input_ids": (torch.arange(6) * (i + 1)) % 28, "labels": torch.tensor(i % 2)}
        for i in range(8)
    ]


def trained_by_trainer(way: str, folder: Path) -> Any:
    """transformers' Trainer with accelerate's FSDP, and what ``MergeIntoShare`` committed."""
    import accelerate
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from sharespace import Share
    from sharespace.learn import load_task
    from sharespace.learn.callbacks import MergeIntoShare

    for state in (accelerate.state.AcceleratorState, accelerate.state.PartialState):
        state._reset_state()
    store = folder / "tasks.share"
    version = {"FSDP": 1, "fully_shard": 2}.get(way)
    options = {}
    if version:
        options = {
            "fsdp": "full_shard auto_wrap",
            "fsdp_config": {
                "version": version,
                "transformer_layer_cls_to_wrap": ["BertLayer"],
                "use_orig_params": True,
                "sync_module_states": False,
                "cpu_ram_efficient_loading": False,
            },
        }
    arguments = TrainingArguments(
        str(folder / "run"), max_steps=4, per_device_train_batch_size=2, learning_rate=0.05,
        use_cpu=True, report_to=[], disable_tqdm=True, logging_strategy="no", save_strategy="no",
        dataloader_pin_memory=False, gradient_checkpointing=version == 2, **options,
    )  # fmt: skip
    if version:
        # accelerate knows FSDP on accelerators alone; nothing else of it asks for the kind.
        assert arguments.device.type == "cpu"
        state = accelerate.state.PartialState._shared_state
        state["distributed_type"] = accelerate.DistributedType.MULTI_GPU
        state["device"] = torch.device("cpu")
    trained = model(folder, share_config(store, task=way))
    seen: dict[str, Any] = {}

    class Remember(TrainerCallback):  # type: ignore[misc]
        """Outputs at the end, on every process, as a forward pass is collective, too."""

        def on_train_end(self, *_: Any, model: Any, **__: Any) -> None:
            seen["logits"] = logits(model)

    callbacks = [Remember(), MergeIntoShare(store, cap=32)]
    trainer = Trainer(trained, arguments, train_dataset=examples(), callbacks=callbacks)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    kind = type(trainer.model).__name__, type(trainer.model_wrapped).__name__
    torch.distributed.barrier()
    share = Share.load(store)
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    return {
        "kind": kind,
        "tasks": share.tasks,
        "logits": logits(load_task(base, share, way)),
        "trained": seen["logits"],
    }


def wrapped(way: str, trained: Any) -> Any:
    """Every layer of BERT and the whole, by torch alone."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy
    from transformers.models.bert.modeling_bert import BertLayer

    if way == "data parallel":
        return torch.nn.parallel.DistributedDataParallel(trained)
    if way == "FSDP":
        return FullyShardedDataParallel(
            trained, use_orig_params=True, device_id=torch.device("cpu"),
            auto_wrap_policy=ModuleWrapPolicy({BertLayer}),
        )  # fmt: skip
    mesh = init_device_mesh("cpu", (2,))
    for part in [m for m in trained.modules() if isinstance(m, BertLayer)]:
        fully_shard(part, mesh=mesh)
    return torch.compile(fully_shard(trained, mesh=mesh), backend="eager")


def step(wrapped: Any) -> None:
    """One step on the same inputs on every process, so that one alone would do the same."""
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.3)
    batch = examples()
    ids, labels = (torch.stack([row[key] for row in batch]) for key in ("input_ids", "labels"))
    wrapped.train()
    wrapped(input_ids=ids, labels=labels).loss.backward()
    optimizer.step()


def by_hand(way: str, folder: Path) -> Any:
    """What ``merge_from`` and ``contribute`` make of it on every process, and of a LoRA."""
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification

    from sharespace import Share
    from sharespace.learn import contribute, load_task, merge_from

    share = Share.load(folder / "tasks.share", 1)
    found = {}
    lora = LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    for kind, config in {
        "share": share_config(folder / "tasks.share", share_version=1),
        "lora": lora,
    }.items():
        torch.manual_seed(0)
        trained = model(folder, config)
        alone = copy.deepcopy(trained)
        step(alone)
        whole = wrapped(way, trained)
        step(whole)
        merged = merge_from(share, whole, task="new", cap=32)
        inbox = folder / f"inbox {way} {kind}"
        submission = contribute(whole, inbox, task="new")
        base = AutoModelForSequenceClassification.from_pretrained(folder / "base")
        found[kind] = {
            "alone": logits(alone),
            "merged": logits(load_task(base, merged, "new")),
            "labels": merged.task("new").labels,
            "bytes": submission.bytes,
            "files": [path.name for path in inbox.glob("*.safetensors")],
        }
    return found


def by_one_process(folder: Path, rank: int) -> Any:
    """The error where one process alone asks for what all of them have."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    from sharespace import Share
    from sharespace.errors import MismatchError
    from sharespace.learn import merge_from

    share = Share.load(folder / "tasks.share", 1)
    config = share_config(folder / "tasks.share", share_version=1)
    whole, inner = wrapped("fully_shard", model(folder, config)), model(folder, config)
    FullyShardedDataParallel(inner, use_orig_params=True, device_id=torch.device("cpu"))
    errors = []
    for given in (whole, inner) if rank == 0 else ():
        try:
            merge_from(share, given, task="new")
        except MismatchError as error:
            errors.append(str(error))
    return errors


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
