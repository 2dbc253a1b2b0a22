"""Serving engines take LoRA factors of linear layers and nothing else: what is refused, and why.

Some of it they refuse themselves, some they leave out without a word; here each is one error
before anything is written. Sizes that an adapter's own files do not state come from the base
model's ``config.json``. A combination of tasks is refused for the same reason where a task
carries a part of its update beside its factors: that part would not be combined.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sharespace.errors import (
    AdapterError,
    CorruptAdapterError,
    OptionError,
    UnsupportedAdapterError,
)
from sharespace.formats.hub import base_model_id, download_config
from sharespace.formats.lora_config import COMPONENTS, CONFIG, FACTOR, refuse_unusable
from sharespace.formats.peft import read_config, write_folder
from sharespace.formats.plain import PlainLora
from sharespace.formats.weights_file import parse_object, refuse_special
from sharespace.mixture_names import parse_mixture
from sharespace.subspace.adapter import BaseModel, ModuleShape
from sharespace.subspace.base_weights import same_base, sample_places
from sharespace.subspace.combine import Combination, carried_task, combined_task, stored_task
from sharespace.subspace.naming import other_names
from sharespace.subspace.state import ShareModel, Task

ELSEWHERE = "Export it as peft, or serve it with `sharespace serve`"

# A fragment of a kept tensor's key -> what it is.
_KINDS: Mapping[str, str] = {
    ".lora_magnitude_vector": "DoRA magnitudes",
    ".lora_embedding_": "LoRA of embeddings",
    ".token_adapter.": "trained tokens",
    ".lora_B.bias": "biases of factors",
}

# All that an engine needs; other fields may be ones that it refuses or misreads.
_SERVED = (
    *("peft_type", "task_type", "r", "lora_alpha", "target_modules", "fan_in_fan_out"),
    *("base_model_name_or_path", "revision", "inference_mode", "use_rslora"),
)


def refuse_beyond_lora(plain: PlainLora, engine: str) -> None:
    """Refuse a task that is more than LoRA factors of one model's linear layers.

    Args:
        engine: named in errors.

    Raises:
        UnsupportedAdapterError: heads, biases, magnitudes, embeddings, convolutions, or modules
            of a diffusers pipeline.
    """
    if COMPONENTS in plain.config:
        raise UnsupportedAdapterError(
            "task",
            f"it adapts a diffusers pipeline, which {engine} does not serve",
            "Export it as diffusers or kohya",
        )
    if plain.kept:
        kinds = ", ".join(dict.fromkeys(_kind_of(key, plain.kept) for key in plain.kept))
        key = next(iter(plain.kept))
        why = f"carries {kinds} beside its LoRA ({key!r}), which {engine} does not take"
        raise UnsupportedAdapterError("task", why, ELSEWHERE)
    refuse_unusable("task", plain.config)
    for module in plain.updates:
        if module in plain.shapes and plain.shapes[module].kernel:
            why = f"it is a convolution, which {engine} does not take"
            raise UnsupportedAdapterError(module, why, ELSEWHERE)


def _kind_of(key: str, kept: Collection[str]) -> str:
    """What a kept tensor is, in a word or two.

    Args:
        kept: keys of all of them.
    """
    kind = next((kind for fragment, kind in _KINDS.items() if fragment in key), None)
    if kind:
        return kind
    if FACTOR.fullmatch(key):
        return "factors that are kept as they are"
    alone = key.endswith(".bias") and key.removesuffix("bias") + "weight" not in kept
    return "biases" if alone else "heads"


def refuse_combining(where: str, config: Mapping[str, Any], kept: Collection[str]) -> None:
    """Refuse to combine a task whose update is more than its factors.

    Args:
        where: the task, named in errors.
        config: ``Task.config``.
        kept: keys of ``Task.kept``; heads and biases are no update and are taken whole.

    Raises:
        UnsupportedAdapterError: DoRA magnitudes, LoRA of embeddings or of single parameters,
            trained tokens, biases of factors, or a field that changes what factors do.
    """
    refuse_unusable(where, config)
    for key in kept:
        kind = _kind_of(key, kept)
        if kind not in ("heads", "biases"):
            why = f"it carries {kind} ({key!r}), which are a part of its update beside its factors"
            remedy = "Leave it out of the combination, or train the task without them"
            raise UnsupportedAdapterError(where, why, remedy)


def requested_weights(model: ShareModel, name: str) -> dict[str, float]:
    """The tasks that a name asks for, and their weights: one of weight 1, or those of a mixture.

    A task's own name goes first, whatever it reads as. Nothing is read.

    Raises:
        TaskNotFoundError: the model has no such task, or not all tasks of the mixture.
        OptionError: a mixture that has no meaning.
    """
    weights = {name: 1.0} if name in model.tasks else parse_mixture(name) or {name: 1.0}
    for task in weights:
        if task not in model.tasks:
            model.task(task)  # This raises the error.
    return weights


def requested_task(model: ShareModel, name: str) -> Task:
    """The task of that name, or a mixture as a task with float64 coefficients.

    Args:
        model: has the tasks.
        name: a task's name or a mixture's, such as ``legal:0.7+medical:0.3``.

    Raises:
        TaskNotFoundError: as ``requested_weights`` does.
        MismatchError: heads or tokenizers of a mixture differ.
        UnsupportedAdapterError: a task of a mixture is more than factors.
    """
    weights = requested_weights(model, name)
    if name in weights:
        return stored_task(model, name)
    _refuse_parts({task: stored_task(model, task) for task in weights})
    return combined_task(model, Combination(weights), name, torch.float64)


def requested_files(model: ShareModel, name: str) -> Mapping[str, torch.Tensor]:
    """Tokenizer and template of what ``requested_task`` gives, without combining anything.

    Raises:
        Exception: as ``requested_task`` does.
    """
    weights = requested_weights(model, name)
    # Remembered, as every request asks for them.
    parts = {task: model.tasks[task] for task in weights}
    if name in weights:
        return parts[name].files
    _refuse_parts(parts)
    return carried_task(parts, None).files


def _refuse_parts(parts: Mapping[str, Task]) -> None:
    for task, part in parts.items():
        refuse_combining(f"task {task!r}", part.config, part.kept)


def served_fields(plain: PlainLora, rank: int) -> dict[str, Any]:
    """The fields of an ``adapter_config.json`` that engines read, and none that they stumble over.

    Raises:
        CorruptAdapterError: the original's fields have no usable values.
    """
    fields = plain.fields(rank)
    return {name: fields[name] for name in _SERVED if name in fields} | {"bias": "none"}


def write_served(
    folder: Path, plain: PlainLora, fields: Mapping[str, Any], dtype: torch.dtype | None
) -> None:
    """Write a PEFT folder of factors alone, and read it back.

    Raises:
        CorruptAdapterError: a factor is not finite, or what was written reads back otherwise.
    """
    write_folder(folder, plain, plain.tensors(fields["r"], dtype), fields)


def written_rank(written: list[Path]) -> int:
    """The rank that an exported folder's config states."""
    return int(read_config(written[0] / CONFIG)["r"])


_BASE_FILE = "config.json"
NAME_IT = "Name the base model's folder or Hub id: base=..., --base"
# Older names of a size, as GPT-2's configuration has them.
OLDER = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
}


@dataclass(frozen=True)
class BaseConfig:
    """A base model's configuration; only its fields, never its weights."""

    where: str
    """Named in errors."""
    fields: Mapping[str, object]

    @property
    def model_type(self) -> str:
        """transformers' name of the architecture, for example ``"llama"``."""
        return str(self.fields.get("model_type", ""))

    def size(self, name: str) -> int:
        """A whole number above 0, for example ``"num_attention_heads"``.

        Raises:
            CorruptAdapterError: the configuration has no such number.
        """
        value = self.fields.get(name, self.fields.get(OLDER.get(name, name)))
        # True is an int in Python.
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CorruptAdapterError(self.where, f"{name} is {value!r}", NAME_IT)
        return value

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.size("num_attention_heads")

    @property
    def key_heads(self) -> int:
        """Number of heads of keys and values; fewer than ``heads`` with grouped queries."""
        stated = self.fields.get("num_key_value_heads")
        return self.heads if stated is None else self.size("num_key_value_heads")

    @property
    def head_dim(self) -> int:
        """Number of features of one head."""
        # Gemma and Qwen3 state it: their heads together are not as wide as the hidden state.
        if self.fields.get("head_dim") is not None:
            return self.size("head_dim")
        return self.size("hidden_size") // self.heads


def read_base_config(source: str | None, base: BaseModel | None) -> BaseConfig:
    """Read a base model's configuration.

    Args:
        source: a folder, or a Hub id ``user/repo`` or ``user/repo@revision``; None: ``base``.
        base: what the task states.

    Raises:
        OptionError: nobody says which base model.
        AdapterError: it can't be had, or its configuration is broken.
    """
    name, revision = source, None
    if name is None and base is not None:
        name, revision = base.id, base.revision
    if not name:
        raise OptionError("base", "the task does not state its base model", NAME_IT)
    return _read(name, _file(name, revision))


def _file(name: str, revision: str | None) -> Path:
    if Path(name).is_dir():
        return Path(name) / _BASE_FILE
    hub = base_model_id(name, revision)
    if hub is None:
        raise AdapterError(name, "neither a folder nor a Hub id", NAME_IT)
    try:
        return download_config(hub)
    except AdapterError as error:
        raise AdapterError(error.what, error.why, NAME_IT) from error


def _read(name: str, path: Path) -> BaseConfig:
    try:
        refuse_special(path)
        text = path.read_bytes()
    except (OSError, CorruptAdapterError) as error:
        reason = error.why if isinstance(error, CorruptAdapterError) else error.strerror or error
        why = f"its {_BASE_FILE} cannot be read ({reason})"
        raise AdapterError(f"base model {name}", why, NAME_IT) from error
    return BaseConfig(f"{name}, {_BASE_FILE}", parse_object(path, text))


def weights_samples(
    name: str, known: Mapping[str, Tensor], shapes: Mapping[str, ModuleShape]
) -> dict[str, Tensor]:
    """Samples of a base model's weights, out of its safetensors files.

    Args:
        name: its folder, or its Hub id where it is in the cache.
        known: adapted module -> sample to compare with. A file does not say whether a square weight
            is transposed (GPT-2); where one of the two is the known one, it is that one.
        shapes: adapted module -> shape.

    Returns:
        Adapted module -> sample, of the modules whose weights are in the files under the module's
        name, neither quantised nor fused; empty where there are no such files.
    """
    samples: dict[str, Tensor] = {}
    for path in _weights_files(name):
        try:
            with safe_open(path, "pt") as file:
                keys = set(file.keys())
                for module in known.keys() - samples.keys():
                    names = (module, *other_names(module, ""))
                    key = next((k for n in names if (k := f"{n}.weight") in keys), None)
                    if key is None:
                        continue
                    sample = _file_sample(file.get_slice(key), shapes[module], known[module])
                    if sample is not None:
                        samples[module] = sample
        except (SafetensorError, OSError, RuntimeError):
            continue
    return samples


def _weights_files(name: str) -> list[Path]:
    folder = Path(name)
    if not folder.is_dir():
        try:
            cached = try_to_load_from_cache(name, _BASE_FILE)
        except HFValidationError:
            return []
        if not isinstance(cached, str):
            return []
        folder = Path(cached).parent
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def _file_sample(weight: Any, shape: ModuleShape, known: Tensor) -> Tensor | None:
    """The sample of a module's weight; None where its values cannot be compared."""
    sides = shape.out_features, shape.in_features
    size = tuple(weight.get_shape())
    if weight.get_dtype() not in ("F64", "F32", "F16", "BF16") or len(size) != 2:
        return None
    rows, columns = sample_places(*sides)
    ways = [(rows, columns)] if size == sides else []
    ways += [(columns, rows)] if size == sides[::-1] else []
    samples = []
    for outer, inner in ways:
        part = torch.cat([weight[i : i + 1] for i in outer])[:, inner].float()
        samples.append(part.contiguous() if outer is rows else part.mT.contiguous())
    return next((s for s in samples if same_base(s, known)), samples[0] if samples else None)
