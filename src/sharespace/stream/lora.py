"""An initial task's LoRA of its own, trained by PEFT and kept in the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sharespace.extras import require
from sharespace.formats import read_adapter
from sharespace.formats.atomic_dir import new_directory
from sharespace.learn import fit
from sharespace.learn.quiet import seeded
from sharespace.recipe import Recipe, TaskData, TaskSpec
from sharespace.stream.models import PEFT_TYPES, heads_of_task
from sharespace.stream.records import Learned
from sharespace.stream.shop import Workshop
from sharespace.stream.training import setup_for, training_for
from sharespace.subspace.adapter import LEARNED, Adapter


def own_lora(
    shop: Workshop, number: int, spec: TaskSpec, data: TaskData
) -> tuple[Adapter, Learned]:
    """The LoRA of the initial task of that number (from 1): trained, or kept from before a kill."""
    path = shop.folder.initial_adapter(number, spec.name)
    counts = shop.folder.counts(path)
    if counts is None:
        learned = _train(shop, number, spec, data)
    else:
        learned = Learned(**{**counts, "labels": tuple(counts["labels"])})
    return _as_learned(shop.recipe, read_adapter(path, spec.name)), learned


def _train(shop: Workshop, number: int, spec: TaskSpec, data: TaskData) -> Learned:
    """Train a LoRA by PEFT; it is on disk, whole, when this returns."""
    recipe, peft = shop.recipe, require("peft", "train")
    path = shop.folder.initial_adapter(number, spec.name)
    shop.say("learning", spec, f"training its own LoRA on {len(data.train)} examples")
    training = training_for(
        spec,
        data,
        shop.folder.trackers(spec.name),
        learning_rate=recipe.lora_learning_rate,
        bars=shop.bars,
    )
    base = shop.model(spec, data.num_labels)
    with seeded(spec.seed):
        model = peft.get_peft_model(
            base, lora_config(recipe, spec, heads_of_task(base, data.num_labels))
        )
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        result = fit(model, data.train, training, setup_for(spec, data))
    shop.tidy(spec)
    lora = sum(p.numel() for n, p in trained if ".lora_" in n)
    heads = sum(p.numel() for _, p in trained) - lora
    learned = Learned(spec.name, "lora", data.label_names, lora=lora, heads=heads)
    learned = replace(learned, **learned.trained(result))
    shop.folder.keep_counts(path, _plain(learned))
    model.peft_config["default"].base_model_name_or_path = recipe.base.text
    with new_directory(path) as aside:
        model.save_pretrained(aside, save_embedding_layers=False)
    require("sharespace.nn", "train").release(model)
    shop.say("kept", spec, f"own LoRA trained, {learned.told}")
    return learned


def lora_config(recipe: Recipe, spec: TaskSpec, heads: Sequence[str]) -> Any:
    """PEFT's configuration of an initial task's LoRA."""
    targets = recipe.target_modules
    only = targets[0] if targets == ("all-linear",) else None
    return require("peft", "train").LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=only or (list(targets) if targets else None),
        modules_to_save=list(heads) or None,
        task_type=PEFT_TYPES[spec.settings.task_type],
    )


def _as_learned(recipe: Recipe, adapter: Adapter) -> Adapter:
    """Without paths of this machine, and without the order of PEFT's sets, which changes."""
    names = {n: adapter.config.get(n) for n in ("target_modules", "modules_to_save")}
    ordered = {n: sorted(set(v)) for n, v in names.items() if isinstance(v, list)}
    config = {**adapter.config, **ordered, "base_model_name_or_path": recipe.base.text}
    return replace(adapter, config=config, provenance=LEARNED)


def _plain(learned: Learned) -> dict[str, Any]:
    return {**vars(learned), "labels": list(learned.labels)}
