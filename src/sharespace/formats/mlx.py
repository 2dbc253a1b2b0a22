"""Adapters of mlx-lm: ``adapters.safetensors`` beside an ``adapter_config.json`` of its own.

Keys are ``<module>.lora_a`` (d x r) and ``<module>.lora_b`` (r x n); the update is
scale * lora_b^T lora_a^T (source: ml-explore/mlx-lm, ``mlx_lm/tuner/lora.py``).
"""

from __future__ import annotations

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.formats.lora_config import CONFIG
from sharespace.formats.pairs import AdapterKeys, FactorPair, build_adapter, refuse_single
from sharespace.formats.peft import read_config
from sharespace.formats.weights_file import WeightsFile
from sharespace.subspace.adapter import Adapter, BaseModel
from sharespace.subspace.naming import unwrapped

MLX_WEIGHTS = "adapters.safetensors"
_ROLES = {"lora_a": "A", "lora_b": "B"}


def is_mlx(file: WeightsFile) -> bool:
    """Whether mlx-lm wrote a file: nobody else writes the factors' letters small."""
    return any(key.endswith((".lora_a", ".lora_b")) for key in file.infos)


def read_mlx(file: WeightsFile, *, name: str, source: str) -> Adapter:
    """Read an adapter of mlx-lm; its ``adapter_config.json`` lies beside the weights.

    Args:
        file: the weights.
        name: of the adapter.
        source: what its provenance says.

    Raises:
        CorruptAdapterError: missing or broken config, or tensors that don't fit each other.
        UnsupportedAdapterError: DoRA, whole weights, or a tensor that is no factor.
    """
    path = file.path.with_name(CONFIG)
    config = read_config(path)
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise UnsupportedAdapterError(
            str(path), f"an adapter of mlx-lm of type {kind!r}, not 'lora'", "Train a LoRA"
        )
    scaling = _scale(str(path), config)
    factors: dict[str, dict[str, str]] = {}
    for key in file.infos:
        module, _, word = unwrapped(key).rpartition(".")
        if not module or word not in _ROLES:
            why = f"{key!r} is no factor of mlx-lm's adapters"
            raise UnsupportedAdapterError(str(file.path), why, "Save the LoRA alone")
        factors.setdefault(module, {})[_ROLES[word]] = key
    pairs = {}
    for module, pair in factors.items():
        refuse_single(file, module, pair.values())
        pairs[module] = FactorPair(pair["A"], pair["B"], scaling, transposed=True)
    model = config.get("model")
    return build_adapter(
        file,
        AdapterKeys(pairs, {}),
        name=name,
        format="mlx",
        base=BaseModel(model if isinstance(model, str) and model else None),
        config={"peft_type": "LORA", "task_type": "CAUSAL_LM"},
        source=source,
    )


def _scale(where: str, config: dict[str, object]) -> float:
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) < 1e30:
        why = f"lora_parameters.scale is {str(scale)[:40]!r}"
        raise CorruptAdapterError(where, why, "It is a finite number, as mlx-lm writes it")
    return float(scale)
