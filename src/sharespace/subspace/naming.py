"""One name for one module, whatever wrapped it and whatever class of the base model it is in.

A wrapper puts itself between a module and its parent, so a part is added to the path of all that is
below it: to the front of every path where the whole model is wrapped, into the middle where single
blocks are (regional compilation, FSDP, activation checkpointing).

The same layer is ``model.layers.0.mlp`` in a language model, ``layers.0.mlp`` in its ``AutoModel``,
``model.language_model.layers.0.mlp`` in its multimodal class (``language_model.model...`` under
transformers 4), and ``unet.down_blocks...`` or ``down_blocks...`` in an adapter of a pipeline or of
its UNet alone. Adapters of one Share model get the names of those that were there before where that
is certain; an adapter that can't belong to the others is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sharespace.errors import MismatchError
from sharespace.subspace.adapter import Adapter, BaseModel, Divisible, LayerUpdate, ModuleShape
from sharespace.subspace.state import ShareModel

COMPONENTS = "__components__"
"""Entry of ``Adapter.config``: names of the components that a pipeline's adapter adapts."""
PEFT_PREFIX = "base_model.model."

PIPELINE_WORDS = frozenset(
    {
        *("unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer"),
        *("transformer_2", "diffusion_model", "prior", "controlnet", "connectors", "llm_adapter"),
    }
)
"""Components of diffusers' pipelines, with which the paths of their modules start."""

WRAPPER_PARTS = frozenset(
    {
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",  # FSDP
        "_checkpoint_wrapped_module",  # activation checkpointing and offloading of torch
        "_fpw_module",  # FSDP of torch 1.11 and of fairscale
        "_dmp_wrapped_module",  # torchrec
        "_forward_module",  # Lightning Fabric
    }
)
"""Parts of a path that only wrappers have, wherever they are."""

# DDP, DataParallel, DeepSpeed and Megatron wrap whole models, so their word is one of the first.
# It is left alone further down: LeViT's residual blocks have a child of that name.
_WHOLE_MODEL = "module"
# What may stand before the model that was wrapped: PEFT's own two wrappers.
_PEFT_PARTS = ("base_model", "model")

# ``base_model_prefix`` of transformers' classes: a model with a head has its word, the same model
# without a head has none. Words of one tower of several (encoder, text_model) are not among them.
_CLASS_WORDS = frozenset(
    {
        *("albert", "backbone", "beit", "bert", "big_bird", "bloom", "camembert"),
        *("convnext", "convnextv2", "deberta", "deit", "dinov2", "distilbert", "electra"),
        *("ernie", "esm", "fnet", "funnel", "gpt_neox", "gptj", "hubert", "ibert"),
        *("layoutlm", "layoutlmv2", "layoutlmv3", "led", "levit", "lilt", "longformer"),
        *("luke", "mobilebert", "mobilevit", "mpnet", "mra", "nystromformer", "pvt"),
        *("regnet", "rembert", "resnet", "roberta", "roformer", "rwkv", "segformer"),
        *("squeezebert", "swin", "swinv2", "videomae", "vit", "vit_mae", "wav2vec2"),
        *("wav2vec2_bert", "wav2vec2_conformer", "wavlm", "xlm", "xlnet"),
    }
)
# Between the class and the layers: transformers has moved them about, the layers are the same.
_NEUTRAL_WORDS = frozenset({"model", "language_model"})
_DDP_WORD = "module"

Renaming = Mapping[str, str]
"""An adapter's name of a module -> the others' name of it."""


@dataclass(frozen=True)
class _Place:
    """A module's path: what differs between classes of one model, and what does not."""

    owner: str | None
    """Component of a pipeline or word of a class; None: the path starts without any."""
    path: str

    @classmethod
    def of(cls, module: str) -> _Place:
        words = module.split(".")
        owner = words.pop(0) if words[0] in PIPELINE_WORDS | _CLASS_WORDS else None
        neutral = set(_NEUTRAL_WORDS)
        if owner is not None and owner.startswith("text_encoder"):
            neutral.add("text_model")  # transformers 5 has taken it out of CLIP's paths
        while len(words) > 1 and words[0] in neutral:
            del words[0]
        return cls(owner, ".".join(word for word in words if word != _DDP_WORD))

    def may_be(self, other: _Place) -> bool:
        """Whether one model may have both names for one module."""
        return self.path == other.path and (
            self.owner == other.owner or self.owner is None or other.owner is None
        )


def other_names(module: str, class_word: str) -> list[str]:
    """Paths that a module may have in another class of its base model, or in another release of
    transformers.

    Args:
        module: its path in the class that an adapter was made with.
        class_word: of the class at hand (``base_model_prefix`` of transformers), or empty.
    """
    place = _Place.of(module)
    starts = ["", *(f"{word}." for word in (class_word, *sorted(_NEUTRAL_WORDS)) if word)]
    starts += ["model.language_model.", "language_model.model."]
    owner = f"{place.owner}." if place.owner in PIPELINE_WORDS else ""
    names = dict.fromkeys(f"{owner}{start}{place.path}" for start in starts)
    return [name for name in names if name != module]


def common_names(
    adapters: Sequence[Adapter], model: ShareModel | None = None, *, stated: bool = False
) -> list[Adapter]:
    """The adapters with one name for each module.

    Args:
        adapters: newcomers.
        model: the Share model that they are for, whose names stay; None: it is built from them.
        stated: whether the user says that all are of one base model.

    Raises:
        MismatchError: an adapter can't be told to be of the others' base model, or names its
            modules otherwise than they do in a way that is not certain.
    """
    known = model.shapes if model else {}
    shapes = dict(known)
    result: dict[int, Adapter] = {}
    # Names with a pipeline's component say more, so they are the ones that all get.
    for i in sorted(range(len(adapters)), key=lambda i: COMPONENTS not in adapters[i].config):
        names = renaming(adapters[i].name, adapters[i].shapes, shapes)
        pipeline = bool(names) and _of_pipeline([*result.values()], model)
        result[i] = _renamed(adapters[i], names, pipeline=pipeline)
        for module, shape in result[i].shapes.items():
            shapes.setdefault(module, shape)
    renamed = [result[i] for i in range(len(adapters))]
    if not stated:
        _refuse_strangers(renamed, known, model.base if model else BaseModel())
        _refuse_unlike_names(renamed, known)
    return renamed


def _of_pipeline(adapters: Sequence[Adapter], model: ShareModel | None) -> bool:
    tasks = model.tasks.values() if model else ()
    return any(COMPONENTS in one.config for one in (*adapters, *tasks))


def renaming(
    who: str, shapes: Mapping[str, ModuleShape], known: Mapping[str, ModuleShape]
) -> Renaming:
    """Module of an adapter (or of a base model) -> its name among known modules.

    Args:
        who: the adapter's name, for errors.
        shapes: its modules.
        known: the others'.

    Returns:
        Only the modules whose names change. Where one module of a root (the path's first words)
        has another name among the known, all modules of that root follow.

    Raises:
        MismatchError: a module may be one of several.
    """
    by_path: dict[str, list[str]] = {}
    for module in known:
        by_path.setdefault(_Place.of(module).path, []).append(module)
    roots: dict[tuple[str, ...], tuple[str, ...]] = {}
    for module, shape in shapes.items():
        if module in known:
            continue
        place = _Place.of(module)
        same = [
            m
            for m in by_path.get(place.path, ())
            if m not in shapes and known[m] == shape and place.may_be(_Place.of(m))
        ]
        if len(same) > 1:
            raise _unclear(who, module, f"may be {same[0]!r} or {same[1]!r} of the others")
        if same:
            old, new = _roots(module, same[0])
            if roots.setdefault(old, new) != new:
                raise _unclear(who, module, f"is {same[0]!r}, but its neighbours have other roots")
    return _by_roots(who, shapes, roots)


def _roots(module: str, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The first words of both names, up to where they are the same."""
    old, new = module.split("."), name.split(".")
    last = ""
    while old and new and old[-1] == new[-1]:
        last = old.pop()
        new.pop()
    if not old:
        # All paths start with nothing: only those with the next word are meant.
        return (last,), (*new, last)
    return tuple(old), tuple(new)


def _by_roots(
    who: str, modules: Iterable[str], roots: Mapping[tuple[str, ...], tuple[str, ...]]
) -> Renaming:
    if not roots:
        return {}
    new_names = {module: _rerooted(module, roots) for module in modules}
    if len(set(new_names.values())) < len(new_names):
        first = next(m for m, n in new_names.items() if m != n)
        raise _unclear(who, first, "and another of its modules would be the same one")
    return {module: name for module, name in new_names.items() if module != name}


def _rerooted(path: str, roots: Mapping[tuple[str, ...], tuple[str, ...]]) -> str:
    words = tuple(path.split("."))
    # The longest root that fits, so that an empty one is the last.
    for old in sorted(roots, key=len, reverse=True):
        if words[: len(old)] == old:
            return ".".join((*roots[old], *words[len(old) :]))
    return path


def _unclear(who: str, module: str, why: str) -> MismatchError:
    return MismatchError(
        f"adapter {who!r}, module {module!r}",
        why,
        "Save it again from the class of the base model that the other adapters were made with",
    )


def _renamed(adapter: Adapter, names: Renaming, *, pipeline: bool) -> Adapter:
    """The adapter with other names for its modules, also in the keys of what it keeps.

    Args:
        adapter: with its own names.
        names: its modules' new names, where they change.
        pipeline: whether the others' names start with the component of a pipeline.

    Raises:
        MismatchError: a field of its config goes by the old names, or only some of its components
            have a component in the others' names.
    """
    if not names:
        return adapter
    first, config = next(iter(names)), dict(adapter.config)
    if any(".lora_" in key for key in adapter.kept) and any(
        config.get(field) for field in ("rank_pattern", "alpha_pattern", "target_parameters")
    ):
        why = "is named otherwise by the others, and it keeps factors that go by their names"
        raise _unclear(adapter.name, first, why)
    shapes = {names.get(m, m): shape for m, shape in adapter.shapes.items()}
    components = {m.partition(".")[0] for m in shapes}
    own = config.pop(COMPONENTS, None)
    several = isinstance(own, list) and len(own) > 1
    if pipeline and components <= PIPELINE_WORDS:
        config[COMPONENTS] = sorted(components)
    elif several:
        raise _unclear(adapter.name, first, "has a component in its name, and the others have none")
    return replace(
        adapter,
        shapes=shapes,
        ranks={names.get(m, m): rank for m, rank in adapter.ranks.items()},
        layer=RenamedLayers(adapter.layer, {names.get(m, m): m for m in adapter.shapes}),
        base_samples={names.get(m, m): rows for m, rows in adapter.base_samples.items()},
        entry_norms={names.get(m, m): norm for m, norm in adapter.entry_norms.items()},
        kept=_renamed_kept(adapter.kept, names, with_components=COMPONENTS in config),
        config=config,
    )


def _renamed_kept(
    kept: Mapping[str, Tensor], names: Renaming, *, with_components: bool
) -> dict[str, Tensor]:
    """What an adapter keeps, where its key starts with a module's path under the new path."""
    result: dict[str, Tensor] = {}
    by_length = sorted(names, key=len, reverse=True)
    for key in kept:
        path = key.removeprefix(PEFT_PREFIX)
        module = next((m for m in by_length if path.startswith(m + ".")), None)
        if module is None:
            result[key] = kept[key]
            continue
        path = names[module] + path.removeprefix(module)
        # A pipeline's kept tensors have their component in front, where PEFT's have its prefix.
        result[path if with_components else PEFT_PREFIX + path] = kept[key]
    return result


@dataclass(frozen=True, eq=False)
class RenamedLayers:
    """Reads updates by the others' names of the modules."""

    layer: Callable[[str], LayerUpdate]
    names: Renaming
    """The others' name -> the name that ``layer`` knows."""

    def __call__(self, module: str) -> LayerUpdate:
        return self.layer(self.names[module])

    def part(self, module: str) -> RenamedLayers:
        """This module only; see ``subspace.adapter.Divisible``."""
        name, layer = self.names[module], self.layer
        one = layer.part(name) if isinstance(layer, Divisible) else {name: layer(name)}.__getitem__
        return RenamedLayers(one, {module: name})


@dataclass
class _Relatives:
    """Adapters that are tied to each other by a module or by the id of their base model."""

    modules: set[str]
    ids: set[str]
    members: list[int]
    """Which adapters, by their place; -1 is the Share model."""


def _refuse_strangers(
    adapters: Sequence[Adapter], known: Mapping[str, ModuleShape], base: BaseModel
) -> None:
    """Refuse an adapter that nothing ties to the others: no module in common and no base model."""
    groups = [_Relatives(set(known), _ids(base), [-1])] if known else []
    for i, adapter in enumerate(adapters):
        if not adapter.shapes:  # It only has a head, and adapts no module of any base.
            continue
        group = _Relatives(set(adapter.shapes), _ids(adapter.base), [i])
        for relatives in [g for g in groups if g.modules & group.modules or g.ids & group.ids]:
            groups.remove(relatives)
            modules, ids = group.modules | relatives.modules, group.ids | relatives.ids
            group = _Relatives(modules, ids, sorted(relatives.members + group.members))
        groups.append(group)
    groups.sort(key=lambda g: (g.members[0] >= 0, -len(g.members), g.members[0]))
    if len(groups) > 1:
        raise _stranger(adapters[groups[1].members[0]], min(groups[0].modules))


def _ids(base: BaseModel) -> set[str]:
    return {base.id} if base.id is not None else set()


def _stranger(adapter: Adapter, theirs: str) -> MismatchError:
    stated = adapter.base.id
    named = "states no base model" if stated is None else f"states the base model {stated!r}"
    return MismatchError(
        f"adapter {adapter.name!r}",
        f"has no module in common with the others ({next(iter(adapter.shapes))!r}, theirs are like "
        f"{theirs!r}), and {named}, so nothing tells that it belongs to them",
        "Leave it out; or, if all are of one base model, state it: --base ID",
    )


def _refuse_unlike_names(adapters: Sequence[Adapter], known: Mapping[str, ModuleShape]) -> None:
    """Refuse an adapter all of whose modules the others have under longer or shorter paths."""
    owners = Counter(m for a in adapters for m in a.shapes) + Counter(known.keys())
    for adapter in adapters:
        if any(owners[m] > 1 for m in adapter.shapes):
            continue
        others = {m: s for one in adapters if one is not adapter for m, s in one.shapes.items()}
        others |= known
        longer = {tail: m for m in others for tail in _tails(m)}
        for module, shape in adapter.shapes.items():
            same = longer.get(module) or next((t for t in _tails(module) if t in others), None)
            if same is not None and others[same] == shape:
                raise _unclear(adapter.name, module, f"is called {same!r} by the others")


def _tails(module: str) -> list[str]:
    """The path without its first word, without its first two and so on, down to two words."""
    words = module.split(".")
    return [".".join(words[i:]) for i in range(1, len(words) - 1)]


def unwrapped(path: str) -> str:
    """The path without the parts that wrappers put into it.

    Args:
        path: of a module, or a tensor's key in a file that starts with such a path; with or
            without PEFT's ``base_model.model.`` in front.

    Returns:
        For example ``model.layers.0.mlp`` for ``module._orig_mod.model.layers.0.mlp``. A path that
        is nothing but a wrapper gives an empty text.
    """
    parts = [part for part in path.split(".") if part not in WRAPPER_PARTS]
    front: list[str] = []
    for part in _PEFT_PARTS:
        _drop_whole_model(parts)
        if parts[:1] == [part]:
            front.append(parts.pop(0))
        else:
            break
    if len(front) == len(_PEFT_PARTS):
        _drop_whole_model(parts)
    return ".".join([*front, *parts])


def _drop_whole_model(parts: list[str]) -> None:
    while parts[:1] == [_WHOLE_MODEL]:
        del parts[0]
