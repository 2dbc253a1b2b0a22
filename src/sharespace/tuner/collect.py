"""A trained adapter out of a ``PeftModel``, ready to be merged into a Share model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from sharespace.errors import MismatchError
from sharespace.formats.companions import labels_of
from sharespace.formats.hub import parse_hub_id
from sharespace.formats.lora_config import COMPONENTS
from sharespace.protocols import PeftModel
from sharespace.subspace.adapter import LEARNED, Adapter, BaseModel, LayerUpdate, ModuleShape
from sharespace.subspace.base_weights import base_samples
from sharespace.subspace.naming import unwrapped
from sharespace.subspace.state import Task
from sharespace.tuner.config import ShareConfig
from sharespace.tuner.modules import PREFIX, bare
from sharespace.tuner.sharding import whole_adapters
from sharespace.tuner.subspace_layer import SubspaceConv, SubspaceLayer


def layers_of(model: nn.Module, adapter: str) -> dict[str, SubspaceLayer]:
    """Adapted module, by its name in the base model -> layer.

    Args:
        model: a ``PeftModel``, or the base model below it; wrapped or not, as a whole or in parts.
        adapter: PEFT's name for the adapter.

    Raises:
        MismatchError: no layer has an adapter of that name.
    """
    layers = {
        unwrapped(name).removeprefix(PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, SubspaceLayer) and module.has(adapter)
    }
    if not layers:
        raise MismatchError(
            f"adapter {adapter!r}",
            "the model has no layers in a Share model's subspace under that name",
            "Make it with get_peft_model(model, ShareConfig(...))",
        )
    return layers


def collect(
    model: PeftModel,
    task: str,
    *,
    adapter: str = "default",
    base: BaseModel | None = None,
    config: Mapping[str, object] | None = None,
    patient: bool = False,
) -> Adapter:
    """The task as trained so far, temporary directions and heads included.

    Args:
        model: a ``PeftModel`` made with ``ShareConfig``, wrapped or not. Where FSDP or
            ``fully_shard`` has cut its parameters into parts, every process has to call this.
        task: the task's name.
        adapter: PEFT's name for it.
        base: the base model's name, as the Share model has it; None: as the configuration says.
        config: more fields of PEFT's ``LoraConfig``, for example ``task_type``.
        patient: where parameters are cut into parts, wait for the other processes without limit,
            not for a minute.

    Raises:
        MismatchError: the model has no such adapter, or its parameters cannot be gathered.
    """
    settings = _config(model, adapter)
    component = f"{settings.component}." if settings.component else ""
    layers = {component + n: m for n, m in layers_of(model, adapter).items()}
    with whole_adapters(f"adapter {adapter!r}", model, patient=patient) as tensors:
        updates = {name: layer.update(adapter) for name, layer in layers.items()}
        heads = _kept(model, adapter, tensors)
        weights = started_from(model, adapter)
        entry_norms = _entry_norms(layers, adapter, settings)
    trained = Adapter.from_updates(
        task,
        updates,
        base=base or BaseModel(settings.base_model_name_or_path),
        shapes={n: _shape(layer, updates[n]) for n, layer in layers.items()},
        kept=heads,
        config={
            **_lora_fields(settings, updates, bool(heads)),
            # Without it an export would put the component before the modules' names once more.
            **({COMPONENTS: [settings.component]} if settings.component else {}),
            **(config or {}),
        },
        provenance=LEARNED,
    )
    labels = labels_of(getattr(getattr(model, "config", None), "id2label", None)) if heads else ()
    return replace(
        trained,
        labels=labels,
        base_samples=base_samples(layers),
        started_from=weights,
        entry_norms=entry_norms,
    )


_LEAST_LEARNED = 0.05
"""Part of its update that a task that started from known ones counts as learned at least: with
less, the weight 1 / |dW - start| would be more than 20 times that of a task that learned all of
its update, and rounding of the start would look like something learned."""


def _entry_norms(
    layers: Mapping[str, SubspaceLayer], adapter: str, settings: ShareConfig
) -> dict[str, float]:
    """Module -> norm of what was learned, of the modules that start from known tasks."""
    began = torch.tensor([a for _, a in settings.started_from or ()], dtype=torch.float64)
    norms: dict[str, float] = {}
    for name, layer in layers.items():
        if layer.starts_from_known(adapter):
            learned, whole = layer.learned_norm(adapter, began if settings.known else None)
            norms[name] = max(learned, _LEAST_LEARNED * whole)
    return norms


def started_from(model: PeftModel, adapter: str) -> dict[str, float]:
    """Coefficients of known tasks that a task started from, and their weights as they are now.

    Args:
        model: a model that holds the adapter.
        adapter: name of the adapter in the model.

    Returns:
        File name of a task's coefficients in a store -> weight; of weights that were trained the
        mean over the modules. Empty where the task started from nothing.
    """
    settings = _config(model, adapter)
    started = dict(settings.started_from or ())
    if not settings.known:
        return started
    weights = [
        layer.sharespace_known_weights[adapter].detach().cpu().double()
        for layer in layers_of(model, adapter).values()
        if layer.starts_from_known(adapter)
    ]
    mean = torch.stack(weights).mean(0).tolist() if weights else list(started.values())
    return dict(zip(started, mean, strict=True))


def base_samples_of(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    """Adapted module -> sample of its base weight, where that is at hand.

    Args:
        model: a model that holds the adapter.
        adapter: name of the adapter in the model.
    """
    settings = _config(model, adapter)
    component = f"{settings.component}." if settings.component else ""
    return base_samples({component + n: m for n, m in layers_of(model, adapter).items()})


def kept_tensors(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """Heads and other modules that were trained whole: their tensors, under PEFT's keys.

    The embeddings are among them where tokens were added, whose rows are random and differ at
    every resize.

    Args:
        model: a model that holds the adapter.
        adapter: name of the adapter in the model.
    """
    with whole_adapters(f"adapter {adapter!r}", model) as tensors:
        return _kept(model, adapter, tensors)


def _kept(model: nn.Module, adapter: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``kept_tensors``, of whole tensors where the model has only parts of them."""
    state = get_peft_model_state_dict(
        bare(model),
        state_dict=dict(tensors) or None,
        adapter_name=adapter,
        save_embedding_layers=vocabulary_resized(bare(model)),
    )
    of_layers = ("sharespace_", "left_basis", "right_basis")
    return {
        unwrapped(key): value.detach().cpu().clone().contiguous()
        for key, value in state.items()
        if not key.rpartition(".")[2].startswith(of_layers)
    }


def vocabulary_resized(model: nn.Module) -> bool:
    """Whether the embeddings have another number of rows than those of the model's own files.

    PEFT decides as much from ``save_embedding_layers="auto"``, but asks the Hub for it. Here it is
    the configuration in the model's folder, or in the cache that it was loaded from; a model that
    came from neither is taken as it is.

    Args:
        model: a base model, or one that PEFT has put adapters into.
    """
    config = getattr(model, "config", None)
    find = getattr(model, "get_input_embeddings", None)
    embeddings = find() if callable(find) and config is not None else None
    # Below what PEFT puts around embeddings that are trained whole.
    weight = getattr(getattr(embeddings, "original_module", embeddings), "weight", None)
    known = _stored_vocabulary(config)
    if known is None or not isinstance(weight, Tensor):
        return False
    # FSDP leaves one flat part of it, or nothing.
    rows = weight.shape[0] if weight.ndim == 2 else _configured_vocabulary(config)
    return rows is not None and rows != known


def _stored_vocabulary(config: object) -> int | None:
    """``vocab_size`` of the configuration that a model was loaded from; None: not known."""
    name = getattr(config, "_name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    path: object = Path(name) / "config.json"
    if not (isinstance(path, Path) and path.is_file()):
        if parse_hub_id(name) is None and not re.fullmatch(r"\w[\w.-]*", name):
            return None
        revision = getattr(config, "_commit_hash", None)
        path = try_to_load_from_cache(name, "config.json", revision=revision)
    try:
        stored = json.loads(Path(path).read_bytes()) if isinstance(path, str | Path) else {}
    except (OSError, ValueError):
        return None
    return _vocabulary(stored)


def _configured_vocabulary(config: object) -> int | None:
    find = getattr(config, "to_dict", None)
    return _vocabulary(find() if callable(find) else None)


def _vocabulary(config: object) -> int | None:
    # Of a multimodal model the language model's is in a configuration of its own.
    text = config.get("text_config") if isinstance(config, dict) else None
    size = config.get("vocab_size") if isinstance(config, dict) else None
    size = text.get("vocab_size") if size is None and isinstance(text, dict) else size
    return size if isinstance(size, int) else None


@torch.no_grad()
def trained_coefficients(
    model: PeftModel, adapter: str, task: Task
) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> (E, F) as trained with frozen bases, k x p; of one stored per task its factors.

    Only for adapters without temporary directions of their own (phi = 0).

    Args:
        model: a model that holds the adapter.
        adapter: name of the adapter in the model.
        task: the stored task that the adapter was loaded from or belongs to.

    Raises:
        MismatchError: the adapter starts from known tasks.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    settings = _config(model, adapter)
    component = f"{settings.component}." if settings.component else ""
    with whole_adapters(f"adapter {adapter!r}", model):
        for module, layer in layers_of(model, adapter).items():
            if layer.starts_from_known(adapter):
                raise MismatchError(
                    f"adapter {adapter!r}",
                    "starts from known tasks, whose updates are no coefficients of its own",
                    "Merge it with merge_from, or take collect(...)",
                )
            name = component + module
            stored = task.coefficients.get(name)
            if stored is not None and not stored.is_shared:
                update = layer.update(adapter)
                pairs[name] = (update.up, update.down.mT)
            else:
                left, right = layer.coefficients(adapter)
                pairs[name] = (left.detach().cpu().clone(), right.detach().cpu().clone())
    return pairs


def _config(model: PeftModel, adapter: str) -> ShareConfig:
    """The adapter's configuration.

    Raises:
        MismatchError: the model has no such adapter, or one of another method.
    """
    config = getattr(bare(model), "peft_config", {}).get(adapter)
    if not isinstance(config, ShareConfig):
        raise MismatchError(
            f"adapter {adapter!r}",
            "the model has none of that name in a Share model's subspace",
            "Make it with get_peft_model(model, ShareConfig(...))",
        )
    return config


def _shape(layer: SubspaceLayer, update: LayerUpdate) -> ModuleShape:
    sides = update.up.shape[0], update.down.shape[1]
    if isinstance(layer, SubspaceConv):
        kernel = tuple(layer.innermost.kernel_size)
        return ModuleShape(*sides, kind="conv", kernel=kernel)
    return ModuleShape(*sides)


def _lora_fields(
    settings: ShareConfig, updates: Mapping[str, LayerUpdate], heads: bool
) -> dict[str, object]:
    """What an export of the task as plain LoRA says of itself."""
    rank = max((u.up.shape[1] for u in updates.values()), default=0)
    task_type = settings.task_type
    return {
        "peft_type": "LORA",
        "task_type": getattr(task_type, "value", task_type),
        "bias": "none",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(updates),
        "modules_to_save": sorted(settings.modules_to_save or ()) if heads else None,
    }
