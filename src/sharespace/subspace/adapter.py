"""An adapter as sharespace sees it: low-rank updates by module, and all else that it carries.

What the adapters of one Share model must agree about, base model and shapes, is checked here.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from sharespace.errors import CorruptAdapterError, MismatchError


@dataclass(frozen=True)
class Provenance:
    """Where a task came from."""

    format: str
    """``"peft"``, ``"diffusers"``, ``"kohya"``, ``"mlx"`` or ``"learned"``."""
    source: str = ""
    """File name or Hub id, never an absolute path of the machine it was read on."""
    sha256: str | None = None
    """SHA-256 (hex) of the weights file, where there is one."""


LEARNED = Provenance("learned")
"""Provenance of a task that was trained here and never was a file."""

Kind = Literal["linear", "conv"]


@dataclass(frozen=True)
class BaseModel:
    """Which pretrained model an adapter or a Share model belongs to."""

    id: str | None = None
    """Hub id or path as the adapter states it; None where the format does not say."""
    revision: str | None = None


_COMPANION = re.compile(
    r"tokenizer[\w.-]{0,80}\.json|tokenization_[\w-]{1,80}\.py"
    r"|[\w.-]{1,80}\.(model|model\.v\d{1,4}|spm|tiktoken|jinja)"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt|bpe)|merges\.txt|tekken\.json"
    r"|bpe\.codes|dict\.txt|normalizer\.json|chat_template\.json|generation_config\.json"
    r"|(pre|image_|video_pre)?processor_config\.json"
    r"|additional_chat_templates/[\w.-]{1,80}\.jinja",
    re.ASCII,
)


def is_companion(name: str) -> bool:
    """Whether a file of an adapter's folder belongs to the adapter and is kept with the task.

    Those of the tokenizer and of a processor, chat templates and the settings of generation; what
    describes a training, a model card among it, is not the adapter's. Such a name is safe in any
    folder: it begins with no dot and leads nowhere else.
    """
    return bool(_COMPANION.fullmatch(name)) and not name.startswith(".") and "/." not in name


@dataclass(frozen=True, eq=False)
class LayerUpdate:
    """One module's update dW = scaling * up @ down."""

    up: Tensor
    """n x r (LoRA's B; a convolution's output side)."""
    down: Tensor
    """r x d (LoRA's A, flattened over input channels and kernel)."""
    scaling: float = 1.0


@runtime_checkable
class Divisible(Protocol):
    """Reads updates from somewhere else, and can be cut down to what one module needs."""

    def __call__(self, module: str) -> LayerUpdate: ...

    def part(self, module: str) -> Callable[[str], LayerUpdate]:
        """Reads this module only, from any directory, also where it is pickled to."""
        ...


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter, read lazily: nothing but headers is in memory until ``layer`` is called."""

    name: str
    """The task's name; any non-empty text."""
    base: BaseModel
    shapes: Mapping[str, ModuleShape]
    """Adapted module (its path in the base model) -> shape."""
    ranks: Mapping[str, int]
    """Adapted module -> r, from the tensors."""
    dtype: torch.dtype
    """Dtype of the factors; the promoted one where they differ."""
    layer: Callable[[str], LayerUpdate]
    """Reads the update of the module of that path."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """Everything that is not compressed (heads, biases, embeddings, DoRA magnitudes ...),
    by the key it has in the file; read on access, given back bit for bit on export."""
    files: Mapping[str, Tensor] = field(default_factory=dict)
    """Tokenizer and chat template: name in the adapter's folder -> bytes (uint8); read on access,
    given back bit for bit on export."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the head's outputs; empty where they have none."""
    base_samples: Mapping[str, Tensor] = field(default_factory=dict)
    """Adapted module -> ``sampled_rows`` of its base weight, where it was at hand."""
    started_from: Mapping[str, float] = field(default_factory=dict)
    """What ``Task.started_from`` says of the task that it holds."""
    entry_norms: Mapping[str, float] = field(default_factory=dict)
    """Adapted module -> |dW - start|, the norm of what was learned, of a task that started from
    known ones; its weight and its ledger go by that. A module that is not named: |dW|."""
    config: Mapping[str, object] = field(default_factory=dict)
    """JSON values that an export needs: the fields of ``adapter_config.json`` for PEFT."""
    provenance: Provenance = LEARNED
    nbytes: int = 0
    """Bytes of all its tensors, as the adapter stores them."""

    def __post_init__(self) -> None:
        for name in ("shapes", "ranks", "config"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def with_name(self, name: str) -> Adapter:
        """The adapter under another name.

        Args:
            name: the new name; any non-empty text.
        """
        return replace(self, name=name)

    def part(self, module: str) -> Adapter:
        """The adapter with one module and nothing beside it, to be sent to another process.

        Where it is a file, the part says where in the file to read; otherwise it holds tensors.

        Args:
            module: path of an adapted module.
        """
        layer = self.layer
        one = layer.part(module) if isinstance(layer, Divisible) else None
        return Adapter(
            name=self.name,
            base=self.base,
            shapes={module: self.shapes[module]},
            ranks={module: self.ranks[module]},
            dtype=self.dtype,
            layer=one or {module: layer(module)}.__getitem__,
            provenance=self.provenance,
        )

    @classmethod
    def from_updates(
        cls,
        name: str,
        updates: Mapping[str, LayerUpdate],
        *,
        base: BaseModel | None = None,
        shapes: Mapping[str, ModuleShape] | None = None,
        kept: Mapping[str, Tensor] | None = None,
        config: Mapping[str, object] | None = None,
        provenance: Provenance | None = None,
    ) -> Adapter:
        """An adapter from updates in memory (a task learned from data, or a test's).

        ``shapes`` is only needed where a module is a convolution.

        Args:
            name: the task's name; any non-empty text.
            updates: adapted module -> update.
            base: the base model; None: unknown.
            shapes: adapted module -> shape; only needed where a module is a convolution.
            kept: tensors that are not compressed, by the key in the adapter's file.
            config: JSON values that an export needs, as in ``Adapter.config``.
            provenance: the file that it came from; None: it was learned.
        """
        kept_tensors = dict(kept or {})
        all_shapes = {m: ModuleShape(u.up.shape[0], u.down.shape[1]) for m, u in updates.items()}
        all_shapes.update(shapes or {})
        dtype = torch.float32
        for i, u in enumerate(updates.values()):
            pair = torch.promote_types(u.up.dtype, u.down.dtype)
            dtype = torch.promote_types(dtype, pair) if i else pair
        tensors = [t for u in updates.values() for t in (u.up, u.down)] + list(
            kept_tensors.values()
        )
        return cls(
            name=name,
            base=base or BaseModel(),
            shapes=all_shapes,
            ranks={m: u.up.shape[1] for m, u in updates.items()},
            dtype=dtype,
            layer=dict(updates).__getitem__,
            kept=kept_tensors,
            config=config or {},
            provenance=provenance or LEARNED,
            nbytes=sum(t.numel() * t.element_size() for t in tensors),
        )


def refuse_not_finite(what: str, kept: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity in what is kept as it is, such as a head.

    Factors are looked at where they are read, layer by layer.

    Args:
        what: whose tensors they are, for the message.
        kept: the tensors by their keys.

    Raises:
        CorruptAdapterError: see above.
    """
    for key in kept:
        tensor = kept[key]
        # Through float32, because torch does not know this of the 8-bit dtypes.
        wide = tensor.float() if tensor.itemsize == 1 else tensor
        if tensor.is_floating_point() and not bool(torch.isfinite(wide).all()):
            raise CorruptAdapterError(
                f"{what}, {key!r}",
                "it holds NaN or infinity",
                "The training run diverged or the file is damaged; use an earlier checkpoint",
            )


@dataclass(frozen=True)
class ModuleShape:
    """The weight of one adapted module of the base model, seen as an n x d matrix."""

    out_features: int
    """n: output features (convolution: output channels)."""
    in_features: int
    """d: input features (convolution: input channels times the kernel's cells)."""
    kind: Kind = "linear"
    """``"conv"`` when the weight has a kernel; Conv1D of transformers is ``"linear"``."""
    kernel: tuple[int, ...] = ()
    """Kernel size, for example ``(3, 3)``; empty for a linear module."""

    @property
    def sides(self) -> int:
        """n + d: numbers in one pair of directions."""
        return self.out_features + self.in_features

    @property
    def in_channels(self) -> int:
        """Input channels of a convolution; input features of a linear module."""
        return self.in_features // math.prod(self.kernel)

    def __str__(self) -> str:
        kernel = f" kernel {'x'.join(map(str, self.kernel))}" if self.kernel else ""
        return f"{self.kind} {self.out_features}x{self.in_features}{kernel}"


def fingerprint(shapes: Mapping[str, ModuleShape]) -> str:
    """SHA-256 (hex) over the sorted names and shapes of the adapted modules.

    Two Share models of one base with the same adapted modules have the same fingerprint.
    """
    digest = hashlib.sha256()
    for name in sorted(shapes):
        digest.update(f"{name}\t{shapes[name]}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def common_base(adapters: Iterable[Adapter], known: BaseModel | None = None) -> BaseModel:
    """The base model that all of them name.

    A missing id and a local path cannot be compared, so they agree with anything; their shapes are
    checked all the same.

    Raises:
        MismatchError: two of them name different models.
    """
    base, named_by = known or BaseModel(), "the Share model"
    for adapter in adapters:
        base, named_by = _agreed(base, named_by, adapter)
    return base


def _agreed(base: BaseModel, named_by: str, adapter: Adapter) -> tuple[BaseModel, str]:
    met = adapter.base
    if met.id is None or (is_local(met.id) and base.id is not None):
        return base, named_by
    if base.id is None or (is_local(base.id) and not is_local(met.id)):
        return met, repr(adapter.name)
    if base.id != met.id and not is_local(met.id):
        raise MismatchError(
            f"adapter {adapter.name!r}",
            f"made for base model {met.id!r}, but {named_by} for {base.id!r}",
            "Leave it out; or, if both are names of one model, state it: --base ID",
        )
    return base, named_by


BASE_FIELD = "base_model_name_or_path"
"""Entry of ``Adapter.config`` with the base model that an export states; where there is none, it is
the Share model's."""


def stating_base(adapter: Adapter, agreed: BaseModel, *, stated: bool) -> Adapter:
    """The adapter with a configuration from which its export takes the base model.

    Modules in common do not tell that an adapter without a base model, or with that of a local
    path, belongs to the others' one: its export states what it stated.

    Args:
        adapter: a newcomer.
        agreed: the Share model's base model.
        stated: the user says that all are of that one.
    """
    own = agreed if stated else adapter.base
    known = own.id is not None and own.id == agreed.id
    if adapter.config.get(BASE_FIELD, own.id if known else "") == own.id:
        return adapter
    config = {**adapter.config, BASE_FIELD: own.id}
    if own.revision is not None or "revision" in config:
        config["revision"] = own.revision
    return replace(adapter, config=config)


def own_base(config: Mapping[str, object], agreed: BaseModel) -> BaseModel:
    """The base model that the export of a task states.

    Args:
        config: the task's.
        agreed: the Share model's base model.
    """
    if BASE_FIELD not in config:
        return agreed
    own, revision = config[BASE_FIELD], config.get("revision")
    return BaseModel(
        own if isinstance(own, str) and own else None,
        revision if isinstance(revision, str) else None,
    )


def names_differ(first: str | None, second: str | None) -> bool:
    """Whether two names of base models are those of two models of the Hub; a local path or no name
    at all tells nothing."""
    if first is None or second is None or is_local(first) or is_local(second):
        return False
    return first != second


def is_local(model_id: str) -> bool:
    # An id of the Hub is "name" or "owner/name"; more slashes, or backslashes, are a path.
    return model_id.startswith(("/", ".", "~")) or model_id.count("/") > 1 or "\\" in model_id


def samples_of(adapters: Iterable[Adapter]) -> list[tuple[str, Mapping[str, Tensor]]]:
    """Each adapter, as errors name it, and its samples of the base weights."""
    return [(f"adapter {adapter.name!r}", adapter.base_samples) for adapter in adapters]


def common_shapes(
    adapters: Iterable[Adapter], known: Mapping[str, ModuleShape] | None = None
) -> dict[str, ModuleShape]:
    """Adapted module -> shape over all of them, in order of appearance.

    Raises:
        MismatchError: two of them disagree about a module.
    """
    shapes = dict(known or {})
    for adapter in adapters:
        for module, shape in adapter.shapes.items():
            expected = shapes.setdefault(module, shape)
            if shape != expected:
                raise MismatchError(
                    f"adapter {adapter.name!r}, module {module!r}",
                    f"its update is {shape}, but {expected} was seen for this module before",
                    "They belong to different base models; keep them in separate Share models",
                )
    return shapes


def refuse_other_modules(
    adapter: Adapter, known: Mapping[str, ModuleShape], owner: str, remedy: str
) -> None:
    """Refuse an adapter of modules, or shapes of them, that whoever takes it in does not have.

    Asked before a commit: what a base model lacks could be stored, and never be served.

    Args:
        adapter: the newcomer.
        known: module -> shape.
        owner: what has these modules, for the error.
        remedy: for the error.

    Raises:
        MismatchError: it has others.
    """
    unknown = [module for module in adapter.shapes if module not in known]
    if unknown:
        few = ", ".join(map(repr, unknown[:3])) + (" ..." if len(unknown) > 3 else "")
        why = f"{owner} does not have {len(unknown)} of its {len(adapter.shapes)} modules: {few}"
        raise MismatchError(f"task {adapter.name!r}", why, remedy)
    common_shapes([adapter], known)
