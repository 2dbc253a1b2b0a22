"""PEFT's LoraConfig as JSON: rank, alpha and scaling by module, and what can't be kept.

The first part reads the fields of an adapter's config, the second makes the config of an exported
plain LoRA. Sources: peft 0.21 ``tuners/lora/config.py``, ``tuners/lora/layer.py``
(``update_layer``) and ``utils/other.py`` (``get_pattern_key``).

The third tells the models of a diffusers pipeline apart. Module names of diffusers and kohya
adapters start with the component ("unet.", "text_encoder."). ``lora_adapter_metadata`` in the
header is one flat JSON object, "unet.r": 4 and so on; a model that was saved alone has neither its
keys nor these fields prefixed.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sharespace.errors import CorruptAdapterError, UnsupportedAdapterError
from sharespace.formats.path_patterns import Budget, PathPattern, PatternError, PatternTable
from sharespace.formats.weights_file import parse_object
from sharespace.subspace.adapter import BaseModel
from sharespace.subspace.naming import COMPONENTS as COMPONENTS
from sharespace.subspace.naming import PIPELINE_WORDS, WRAPPER_PARTS

Value = TypeVar("Value")
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."

METADATA = "__metadata__"
"""Entry of ``Adapter.config`` with the weights file's own header entries, where it has any."""

FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight", re.DOTALL)
_SIMPLER = "Write it with the modules' full paths, or simpler"
_MAX_RANK = 1_000_000
CONVERT = (
    "Save it with save_pretrained(..., path_initial_model_for_weight_conversion=...), "
    "which writes a plain LoRA of twice the rank; or put the initial adapter beside it, in a "
    "folder named after the initialisation (pissa_init)"
)

SHARESPACE = "SHARESPACE"
# PEFT's methods without any update of a weight.
_PROMPTS = frozenset(
    {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"}
)

# Initialisations that subtract their start from the base weights: B A alone is not the update.
_BASE_CHANGED = ("pissa", "corda", "olora", "loftq", "lora_ga")

LORA_METADATA = "lora_adapter_metadata"

UNET_ROOTS = frozenset(
    {
        "down_blocks",
        "mid_block",
        "up_blocks",
        "conv_in",
        "conv_out",
        "time_embedding",
        "add_embedding",
        "encoder_hid_proj",
    }
)
"""First words of the paths in a UNet of diffusers."""

# Fields with names of modules or parameters, or with regular expressions for them.
_MODULE_FIELDS = (
    *("target_modules", "target_parameters", "modules_to_save", "exclude_modules"),
    *("rank_pattern", "alpha_pattern"),
)
# Fields by which PEFT takes some of the modules that ``target_modules`` names.
_SELECTING = ("exclude_modules", "layers_to_transform", "layers_pattern")
_MOVED = frozenset({"language_model", "visual", "vision_tower", "multi_modal_projector"})
# A wrapper's part of a path, also where the dot behind it is escaped in a regular expression.
_WRAPPED = re.compile(rf"(?<![^.^])(?:{'|'.join(sorted(WRAPPER_PARTS))})\\?\.|^module\\?\.")

# Fields whose update is not B A on the base model's own layers.
_OTHER_METHODS = {
    "layer_replication": "it adapts a base model with repeated layers",
    "use_qalora": "its A acts on pooled inputs",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "it truncates the base weights and has a diagonal between the factors",
    "monteclora_config": "it samples its factors",
    "arrow_config": "it routes between other adapters",
}

# Fields that leave the update at scaling * B A on all inputs of the adapted modules, or whose
# effect is in tensors of their own (magnitudes, biases, trained tokens), which are looked at by
# their keys. A field that is not here may change what factors do, as alora_invocation_tokens does.
_PLAIN_USE = frozenset(
    (
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
        *("revision", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha"),
        *("lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save"),
        *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
        *("alpha_pattern", "megatron_config", "megatron_core", "trainable_token_indices"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "use_dora"),
        *("velora_config", "qalora_group_size", "runtime_config", "lora_bias"),
        *("target_parameters", "ensure_weight_tying"),
    )
)
_ALORA = {"alora_invocation_tokens": "its factors act from certain tokens on (aLoRA)"}

# About how the factors were started or which modules were searched: settled by the factors and by
# the list of modules themselves, and some of it changes the base model when it is loaded.
_SETTLED: Mapping[str, object] = {
    "init_lora_weights": True,
    "eva_config": None,
    "corda_config": None,
    "lora_ga_config": None,
    "loftq_config": {},
    "exclude_modules": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "use_rslora": False,
    "inference_mode": True,
    "peft_type": "LORA",
}


@dataclass(frozen=True)
class LoraScaling:
    """Rank and scaling of every module as a LoraConfig states them."""

    # PEFT's defaults, for configs that do not state them.
    r: int = 8
    alpha: float = 8.0
    rslora: bool = False
    ranks: PatternTable[int] = field(default_factory=PatternTable)
    """``rank_pattern``: regular expression for the end of a module's path -> rank."""
    alphas: PatternTable[float] = field(default_factory=PatternTable)
    """``alpha_pattern``, likewise."""

    def rank(self, module: str) -> int:
        """The rank that the config states for a module."""
        return _matching(self.ranks, module, self.r)

    def lora_alpha(self, module: str) -> float:
        """The alpha that the config states for a module."""
        return _matching(self.alphas, module, self.alpha)

    def scaling(self, module: str) -> float:
        """s of dW = s B A: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        rank = self.rank(module)
        return self.lora_alpha(module) / (math.sqrt(rank) if self.rslora else rank)

    def plain_alpha(self, module: str) -> float:
        """The alpha that gives the same scaling without rsLoRA."""
        return self.lora_alpha(module) * (math.sqrt(self.rank(module)) if self.rslora else 1)


def _matching(patterns: PatternTable[Value], module: str, default: Value) -> Value:
    # What PEFT wraps inside a wrapped module (MultiheadAttention's out_proj) goes by the outer one.
    try:
        value = patterns.find(module.partition(".base_layer.")[0])
    except PatternError as error:
        why = f"rank_pattern or alpha_pattern has {error}"
        raise CorruptAdapterError(CONFIG, why, _SIMPLER) from error
    return default if value is None else value


def lora_scaling(where: str, config: Mapping[str, Any]) -> LoraScaling:
    """Read the fields that make up a module's scaling.

    Args:
        where: the config's file, named in errors.
        config: a LoraConfig's fields; missing ones have PEFT's defaults.

    Raises:
        CorruptAdapterError: a field has a value that PEFT cannot use.
    """
    ranks = {key: _rank(where, key, r) for key, r in _pattern(where, config, "rank_pattern")}
    alphas = {key: _alpha(where, key, a) for key, a in _pattern(where, config, "alpha_pattern")}
    return LoraScaling(
        r=_rank(where, "r", config.get("r", 8)),
        alpha=_alpha(where, "lora_alpha", config.get("lora_alpha", 8)),
        rslora=bool(config.get("use_rslora")),
        ranks=_table(where, "rank_pattern", ranks),
        alphas=_table(where, "alpha_pattern", alphas),
    )


def _table(where: str, name: str, patterns: Mapping[str, Value]) -> PatternTable[Value]:
    try:
        return PatternTable(patterns)
    except PatternError as error:
        raise CorruptAdapterError(where, f"{name} has {error}", _SIMPLER) from error


def _pattern(where: str, config: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict):
        raise CorruptAdapterError(where, f"{name} is {pattern!r}, not an object", "Correct it")
    return list(pattern.items())


def without_wrappers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with the names of modules and the patterns for them as the bare model has them."""
    fields = dict(config)
    for name in _MODULE_FIELDS:
        value = fields.get(name)
        if isinstance(value, dict):
            fields[name] = {_bare(key): entry for key, entry in value.items()}
        elif isinstance(value, list):
            fields[name] = [_bare(entry) for entry in value]
        elif isinstance(value, str):
            fields[name] = _bare(value)
    return fields


def _bare(pattern: object) -> object:
    return _WRAPPED.sub("", pattern) if isinstance(pattern, str) else pattern


def _rank(where: str, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_RANK:
        shown = "larger than any rank" if _is_huge(value) else repr(value)
        raise CorruptAdapterError(where, f"rank {name} is {shown}", "It is an integer above 0")
    return value


def _is_huge(value: object) -> bool:
    # Python refuses to print a whole number of more than 4,300 digits.
    return isinstance(value, int) and abs(value) > _MAX_RANK


def _fits_float(value: float) -> bool:
    # Not math.isfinite, which overflows at a whole number that no float can hold; NaN fails too.
    return abs(value) <= sys.float_info.max


def _alpha(where: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _fits_float(value):
        shown = "larger than any float" if _is_huge(value) else repr(value)
        raise CorruptAdapterError(where, f"alpha {name} is {shown}", "It is a finite number")
    return float(value)


def check_rank(where: str, config: LoraScaling, module: str, rank: int) -> None:
    """Refuse a config whose rank is not the tensors': PEFT can't load it, and alpha / r is unclear.

    Raises:
        CorruptAdapterError: the two differ.
    """
    if config.rank(module) != rank:
        raise CorruptAdapterError(
            where,
            f"rank {config.rank(module)} for module {module!r}, whose tensors have rank {rank}",
            "Correct r or rank_pattern: the scaling is lora_alpha / r",
        )


def changed_base(config: Mapping[str, Any]) -> str | None:
    """The initialisation that subtracted its start from the base weights; None: it was another."""
    init = config.get("init_lora_weights")
    kinds = [k for k in _BASE_CHANGED if isinstance(init, str) and init.lower().startswith(k)]
    return kinds[0] if kinds else None


def refuse_other_updates(where: str, config: Mapping[str, Any]) -> None:
    """Refuse what is not an update scaling * B A of the base model as it is published.

    Raises:
        CorruptAdapterError: the config names no method.
        UnsupportedAdapterError: another method than LoRA, or a variant that can't be kept.
    """
    method = config.get("peft_type")
    if not isinstance(method, str):
        raise CorruptAdapterError(where, "no peft_type", "Write the config with PEFT")
    if method.upper() != "LORA":
        raise UnsupportedAdapterError(where, f"the method is {method}, not LORA", _remedy(method))
    init = config.get("init_lora_weights")
    if changed_base(config):
        raise UnsupportedAdapterError(where, f"{init!r} initialisation changed the base", CONVERT)
    for name, why in _OTHER_METHODS.items():
        if config.get(name):
            remedy = "Merge it into the base model, or train it without"
            raise UnsupportedAdapterError(where, f"{name} is set: {why}", remedy)


def refuse_other_use(where: str, config: Mapping[str, Any]) -> None:
    """Refuse to run factors whose config has a field that may change what they do.

    Reading, keeping and exporting such an adapter is fine, as its config goes with it; adding
    scaling * B A x to the output of its modules is not what it was trained for.

    Args:
        where: the task or the file, named in errors.
        config: a LoraConfig's fields; those that are not set (None, False, empty) are passed over.

    Raises:
        UnsupportedAdapterError: a field is set that does not belong to a plain LoRA, or is not
            known here.
    """
    reasons = _OTHER_METHODS | _ALORA
    for name, value in config.items():
        # Entries of this package, such as METADATA, are no fields.
        if not value or name in _PLAIN_USE or name.startswith("__"):
            continue
        why = reasons.get(name, "what it does to the factors is not known here")
        raise UnsupportedAdapterError(
            where, f"{name} is set: {why}", "Export it as peft and run it with PEFT"
        )


def _remedy(method: str) -> str:
    """How an adapter of another method of PEFT becomes one that can be shared."""
    name = method.upper()
    if name == SHARESPACE:
        return (
            "It is an adapter of sharespace itself: load it with PEFT and merge it with "
            "sharespace.learn.merge_from, or send it with sharespace submit"
        )
    if name in _PROMPTS:
        return "It changes the input and no weights: keep it as it is"
    return (
        "Load it with PEFT and convert it to a LoRA: peft.save_as_lora(folder, model, rank) or "
        "peft.convert_to_lora"
    )


def target_parameters(where: str, config: Mapping[str, Any]) -> list[str]:
    """The parameters (not modules) that a LoRA adapts, usually stacked experts.

    Raises:
        CorruptAdapterError: the field is not a list of texts.
    """
    parameters = config.get("target_parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(name, str) for name in parameters):
        raise CorruptAdapterError(
            where, f"target_parameters is {parameters!r}", "It is a list of names"
        )
    return parameters


def parameter_of(module: str, parameters: list[str]) -> str | None:
    """The ``target_parameters`` entry that a LoRA'd module's factors may belong to, if any.

    PEFT wraps the module that owns the parameter; a second parameter of the same module is wrapped
    once more, which shows as ``.base_layer`` in the path.
    """
    owner = module
    while owner.endswith(".base_layer"):
        owner = owner.removesuffix(".base_layer")
    for target in parameters:
        path = target.rpartition(".")[0]
        if not path or owner == path or owner.endswith("." + path):
            return target
    return None


def may_be_target(config: Mapping[str, Any], module: str) -> bool:
    """Whether ``target_modules`` may name a module; a regular expression may."""
    targets = config.get("target_modules")
    if not isinstance(targets, list):
        return ".base_layer" not in module
    return any(
        module == target or module.endswith(f".{target}")
        for target in targets
        if isinstance(target, str)
    )


@dataclass(frozen=True)
class RawFactors:
    """LoRA factors that are exported as they were: rank and scaling of their own."""

    modules: Mapping[str, int]
    """Embedding or grouped convolution -> its rank."""
    parameters: tuple[str, ...] = ()
    """Paths of parameters (``target_parameters``) that have factors."""
    magnitudes: bool = False
    """There are DoRA magnitudes."""
    embeddings: bool = False


def plain_config(
    config: Mapping[str, Any],
    modules: Iterable[str],
    raw: RawFactors,
    *,
    rank: int,
    base: BaseModel | None,
) -> dict[str, Any]:
    """The config of plain factors of one rank and scaling 1, beside raw factors.

    Args:
        config: the original adapter's fields, as PEFT wrote them; unknown ones are handed on.
        modules: paths of the modules with plain factors.
        raw: what is exported as it was.
        rank: of the plain factors.
        base: the model it belongs to; None: the one the config states.

    Raises:
        CorruptAdapterError: the original's fields have no usable values.
    """
    plain = sorted(modules)
    fields = {"task_type": None, "bias": "none"} | dict(config) | dict(_SETTLED)
    scaling = lora_scaling("config", config)
    fields.update(_ranks(plain, raw, scaling, rank))
    fields["target_modules"] = _own_targets(config, [*plain, *raw.modules]) or _targets(
        [*plain, *raw.modules]
    )
    if base is not None:
        fields |= {"base_model_name_or_path": base.id, "revision": base.revision}
    fields["use_dora"] = raw.magnitudes
    if raw.embeddings:
        # A tied output layer would share the raw embedding factors instead of loading its own.
        fields["ensure_weight_tying"] = False
    return fields


def _ranks(plain: list[str], raw: RawFactors, scaling: LoraScaling, rank: int) -> dict[str, Any]:
    """r, lora_alpha and patterns, so that plain factors have scaling 1 and raw ones their own.

    PEFT takes no notice of patterns for parameters when it checks that patterns matched, and
    warns; so with parameters, *their* rank is the default and the plain modules have the pattern.
    """
    own = {exact([m]): (r, scaling.plain_alpha(m)) for m, r in raw.modules.items()}
    default: tuple[int, float] = (rank, rank)
    if raw.parameters:
        default = (scaling.r, LoraScaling(scaling.r, scaling.alpha, scaling.rslora).plain_alpha(""))
        for path in raw.parameters:
            own[exact([path])] = (scaling.rank(path), scaling.plain_alpha(path))
        if plain:
            own[exact(plain)] = (rank, rank)
    return {
        "r": default[0],
        "lora_alpha": _number(default[1]),
        "rank_pattern": {key: r for key, (r, _) in own.items() if r != default[0]},
        "alpha_pattern": {key: _number(a) for key, (_, a) in own.items() if a != default[1]},
    }


def _own_targets(config: Mapping[str, Any], modules: list[str]) -> list[str] | str | None:
    """The adapter's own ``target_modules``, where full paths would name no module of its base.

    transformers 5 has moved the language model within its multimodal classes, and PEFT follows with
    the tensors' keys, but not with full paths in ``target_modules``.
    """
    targets = config.get("target_modules")
    moved = any(_MOVED & set(module.split(".")) for module in modules)
    if not moved or any(config.get(field) for field in _SELECTING):
        return None
    if isinstance(targets, list) and all(may_be_target(config, module) for module in modules):
        return sorted(target for target in targets if isinstance(target, str))
    if not isinstance(targets, str) or targets == "all-linear":
        return None
    try:
        pattern, budget = PathPattern.parse(targets, ends=False), Budget()
        return targets if all(pattern.matches(module, budget) for module in modules) else None
    except PatternError:
        return None


def _targets(modules: list[str]) -> list[str] | str:
    """What matches exactly these modules.

    PEFT matches an entry of a list at the end of a path, so a name without a dot ("head") would
    match "x.head" too; there a regular expression, which is matched in full, says what is meant.
    """
    # What PEFT wraps inside a wrapped module is no target of its own: naming the outer is enough.
    own = sorted({m for m in modules if ".base_layer." not in m})
    if all("." in module for module in own):
        return own
    return f"(?:{'|'.join(re.escape(module) for module in own)})"


def owners(config: Mapping[str, Any], module: str) -> list[str]:
    """Paths of the targeted parameters that a module's raw factors may belong to."""
    targets = target_parameters("config", config)
    owner = re.sub(r"(\.base_layer)+$", "", module)
    owned = [target for target in targets if parameter_of(owner, [target])]
    return [f"{owner}.{target.rpartition('.')[2]}" for target in owned]


def exact(modules: Iterable[str]) -> str:
    """A pattern that PEFT matches against these full paths and no others."""
    paths = [re.escape(module) for module in modules]
    return f"^{paths[0]}" if len(paths) == 1 else f"^(?:{'|'.join(paths)})"


def _number(value: float) -> int | float:
    """An alpha as PEFT writes it: a whole one without a decimal point."""
    return int(value) if value == int(value) else value


def default_component(keys: Iterable[str]) -> str:
    """The component of keys that name none: the one that is built like this."""
    roots = {key.split(".", 1)[0] for key in keys}
    return "unet" if roots & UNET_ROOTS else "transformer"


def with_component(path: str, default: str) -> str:
    """The path with its component in front."""
    return path if path.split(".", 1)[0] in PIPELINE_WORDS else f"{default}.{path}"


def split_component(module: str) -> tuple[str, str]:
    """(component, path inside it) of a module's name."""
    component, _, path = module.partition(".")
    return component, path


def components_of(modules: Iterable[str]) -> list[str]:
    """Names of the components that these modules belong to, sorted."""
    return sorted({split_component(module)[0] for module in modules})


def component_config(where: str, config: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The LoraConfig fields of one component; empty where the adapter states none.

    Args:
        where: named in errors.
        config: ``Adapter.config``.
        component: for example ``"unet"``.

    Raises:
        CorruptAdapterError: the header's entry is not a JSON object.
    """
    text = config.get(METADATA, {}).get(LORA_METADATA)
    if text is None:
        return {}
    fields = parse_object(f"{where}, {LORA_METADATA}", text)
    start = component + "."
    own = {k.removeprefix(start): v for k, v in fields.items() if k.startswith(start)}
    # A model that was saved alone (not as part of a pipeline) has no prefix at its fields.
    return own or ({} if "r" not in fields else fields)


def refuse_unusable(where: str, config: Mapping[str, Any]) -> None:
    """Refuse to run an adapter, of one model or of a pipeline, that is more than a plain LoRA.

    Args:
        where: the task, named in errors.
        config: ``Adapter.config``.

    Raises:
        UnsupportedAdapterError: see ``refuse_other_use``.
        CorruptAdapterError: the header's entry is not a JSON object.
    """
    refuse_other_use(where, config)
    for component in config.get(COMPONENTS) or ():
        refuse_other_use(f"{where}, {component}", component_config(where, config, component))
