"""Do these adapters and models belong to one base model?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sharespace.errors import MismatchError
from sharespace.shapes import ModuleShape
from sharespace.subspace.adapter import Adapter, BaseModel


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
    if met.id is None or (_is_local(met.id) and base.id is not None):
        return base, named_by
    if base.id is None or (_is_local(base.id) and not _is_local(met.id)):
        return met, repr(adapter.name)
    if base.id != met.id and not _is_local(met.id):
        raise MismatchError(
            f"adapter {adapter.name!r}",
            f"made for base model {met.id!r}, but {named_by} for {base.id!r}",
            "Leave it out; or, if both are names of one model, state it: --base ID",
        )
    return base, named_by


def _is_local(model_id: str) -> bool:
    return model_id.startswith(("/", ".", "~")) or model_id.count("/") > 1 or "\\" in model_id


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
