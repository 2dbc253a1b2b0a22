"""The method's model class: puts the layers in place, as PEFT's ``LoraModel`` does for LoRA.

An adapter may carry its bases in its own file (``ShareConfig.save_basis``): then the configuration
has the sizes of every module, and no Share model is looked for. ``register`` makes the method known
to PEFT.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn

from sharespace.errors import MismatchError, OptionError
from sharespace.formats.lora_config import refuse_unusable
from sharespace.store import coefficient_files
from sharespace.subspace.base_weights import checked_base, say_untied, untie
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.naming import WRAPPER_PARTS, unwrapped
from sharespace.subspace.state import ShareModel, Task
from sharespace.tuner.bases import check_shape, empty, layer_name, layout, locate_share
from sharespace.tuner.compose import sum_config, summed_values
from sharespace.tuner.config import SHARESPACE, ShareConfig
from sharespace.tuner.mixing import mixing
from sharespace.tuner.modules import copy_heads, device_of, fill_heads, head_modules, wrapped_by
from sharespace.tuner.start import (
    KnownUpdates,
    StartValues,
    known_task,
    known_updates,
    new_core,
    new_task,
    start_weights,
)
from sharespace.tuner.subspace_layer import (
    BASE,
    RowAdapters,
    SubspaceConv,
    SubspaceLayer,
    SubspaceLinear,
)

_NAMES = ("left_basis", "right_basis")
_ORIGIN = (
    *("share", "share_version", "basis_id", "task"),
    *("p", "phi", "form", "start", "known", "seed"),
)
_BASIS_ID_KEY = "base_model.model.sharespace_basis_id"
"""Key of the tensor that says which bases the coefficients of a file belong to."""


class ShareTuner(BaseTuner):
    """A base model with adapters in a Share model's subspace; see ``ShareConfig``."""

    prefix = "sharespace_"
    tuner_layer_cls = SubspaceLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    _share: ShareModel | None = None
    """Only while an adapter is put in place: a model that is copied or pickled has none."""
    _copied: str | None = None
    """Only while an adapter is put in place that begins as a copy of the one of this name."""
    _summed: Mapping[str, float] | None = None
    """Only while an adapter is put in place that is the weighed sum of these."""
    _origins: Mapping[str, tuple[object, ...]] = MappingProxyType({})
    """Adapter -> what its configuration said of its start: one that is changed is another one."""

    def _check_new_adapter_config(self, config: ShareConfig) -> None:
        """Find the Share model, and refuse a second one with other bases."""
        super()._check_new_adapter_config(config)
        if config.layout is None and self._copied is None and self._summed is None:
            if config.share is None:
                raise OptionError(
                    "ShareConfig", "names no Share model", "Give share=PATH or a Hub id"
                )
            located = locate_share(config.share, config.share_version, config.basis_id)
            config.share_version, config.basis_id = located.version, located.basis_id
            self._share = located.model
        for name, present in self.peft_config.items():
            if present is not config and present.basis_id != config.basis_id:
                raise MismatchError(
                    f"adapter {name!r}",
                    "was made with other bases, and a model has one subspace",
                    "Load each in a model of its own, or merge both into one Share model",
                )

    def _prepare_adapter_config(
        self, peft_config: ShareConfig, model_config: Mapping[str, object]
    ) -> ShareConfig:
        """All modules of the subspace unless told otherwise; the heads of a known task."""
        config = peft_config
        if self._copied is not None or self._summed is not None:
            return config
        self._refuse_nothing_to_train(config)
        self._refuse_weights_left_on_disk()
        if config.target_modules is None:
            names = self._share.layers if self._share else config.layout or {}
            component = f"{config.component}." if config.component else ""
            config.target_modules = {n.removeprefix(component) for n in names}  # type: ignore[assignment]
        self._check_base(config.component)
        task = self._known_task(config)
        self._check_start(config, task)
        if task is not None:
            refuse_unusable(f"task {task.name!r}", task.config)
            heads = head_modules(self.model, task)
            names = dict.fromkeys([*(config.modules_to_save or ()), *heads])
            config.modules_to_save = list(names) or None
        return config

    def _check_start(self, config: ShareConfig, task: Task | None) -> None:
        """Refuse a start that cannot be, and note the stored tasks that the new one starts from.

        Raises:
            TaskNotFoundError: it names a task that the Share model does not know.
            OptionError: the task is known, so that it starts from itself.
        """
        if self._share is None:
            return
        if task is not None and (config.start != "zero" or config.known):
            raise OptionError(
                f"start={config.start!r}, known={config.known}",
                f"the Share model knows task {task.name!r}, which is trained on from what it is",
                "Leave them out, or give the new task another name",
            )
        weights = start_weights(self._share, config.start, config.known or ())
        files = coefficient_files(self._share, weights)
        if config.known and len(set(files.values())) < len(files):
            raise OptionError(
                f"known={config.known}",
                "two of these tasks have the same coefficients: their weights mean the same",
                "Leave one of them out",
            )
        started: dict[str, float] = {}
        for name, weight in weights.items():
            started[files[name]] = started.get(files[name], 0.0) + weight
        config.started_from = list(started.items()) or None

    def _check_base(self, component: str | None) -> None:
        """Refuse another base model, before any of its modules is replaced.

        Raises:
            MismatchError: its weights are not those that the Share model's tasks belong to.
        """
        if self._share is None or not self._share.base_samples:
            return
        prefix = f"{component}." if component else ""
        modules = {prefix + unwrapped(name): m for name, m in self.model.named_modules()}
        known = {name: modules[name] for name in self._share.layers if name in modules}
        checked_base(f"model {type(self.model).__name__}", self._share.base_samples, known)

    def _refuse_weights_left_on_disk(self) -> None:
        """``PeftModel.from_pretrained`` takes accelerate's hooks away, and PEFT (0.21) writes them
        anew with names that only LoRA's parameters have: others would compute with NaN.

        Raises:
            MismatchError: weights are on disk, and nothing loads them.
        """
        on_disk = "disk" in (getattr(self.model, "hf_device_map", None) or {}).values()
        for module in self.model.modules() if on_disk else ():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.is_meta and device_of(module) is None:
                raise MismatchError(
                    "PeftModel.from_pretrained",
                    "the base model's weights are on disk, and PEFT places such models anew for "
                    "LoRA alone",
                    "Use get_peft_model(model, ShareConfig(...)), then load_adapter(PATH, NAME)",
                )

    def _refuse_nothing_to_train(self, config: ShareConfig) -> None:
        """A new task in a subspace without a direction would train nothing, or its head alone.

        Raises:
            OptionError: see above.
        """
        if self._share is None or self._known_task(config) is not None or config.phi != 0:
            return
        if all(min(layer.k) == 0 for layer in self._share.layers.values()):
            budget = self._share.settings.budget
            why = (
                ""
                if budget is None
                else f" (its budget of {budget:,} bytes stores updates per task)"
            )
            raise OptionError(
                f"task {config.task!r}",
                f"the Share model has no direction in any layer{why}: nothing would be trained",
                "Leave phi out or give at least 1, or build the Share model with k, a variance or "
                "a larger budget",
            )

    def _known_task(self, config: ShareConfig) -> Task | None:
        if self._share is None or config.task is None:
            return None
        return self._share.tasks.get(config.task)

    def _check_target_module_exists(self, config: ShareConfig, key: str) -> Any:
        """PEFT's, by the path that the bare model has: parts of it may be compiled or sharded.

        Of a module that is wrapped itself the inner one is adapted.
        """
        if wrapped_by(self.model.get_submodule(key)) in WRAPPER_PARTS:
            return False
        return BaseTuner._check_target_module_exists(config, unwrapped(key))

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """The key in files: of the bare model, whatever wraps the one that is saved or loaded."""
        plain: str = super()._remove_adapter_name_from_key(key, adapter_name)
        return unwrapped(plain) if cls.prefix in plain or is_basis(plain) else plain

    def _create_and_replace(
        self,
        peft_config: ShareConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config, current_key = peft_config, unwrapped(current_key)
        if self._copied is not None and isinstance(target, SubspaceLayer):
            values = target.values(self._copied)
        elif self._summed is not None and isinstance(target, SubspaceLayer):
            values = summed_values(target, self._summed)
        else:
            layer, values = self._start(config, current_key)
            base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
            check_shape(current_key, base, layer)
            if not isinstance(target, SubspaceLayer):
                kind = SubspaceConv if isinstance(base, nn.modules.conv._ConvNd) else SubspaceLinear
                target = self._put(
                    kind(target, layer.left_basis, layer.right_basis), parent, target_name
                )
                target._active_adapter = adapter_name
        target.update_layer(
            adapter_name, values, dropout=config.dropout, inference_mode=config.inference_mode
        )
        if self._copied is not None:
            target.scaling[adapter_name] = target.scaling[self._copied]
        # PEFT adds adapters to a model that trains another one: the new one waits, as LoRA's does.
        if adapter_name not in self.active_adapters:
            for parameters in target.adapter_layer_names:
                if adapter_name in getattr(target, parameters):
                    getattr(target, parameters)[adapter_name].requires_grad_(False)

    def _start(self, config: ShareConfig, key: str) -> tuple[LayerSubspace, StartValues]:
        """A module's subspace, and the adapter's values there before training or loading."""
        if self._share is None:
            return empty(config.layout or {}, key)
        name = layer_name(self._share, key, config.component)
        layer, task = self._share.layers[name], self._known_task(config)
        if task is not None and config.init_weights and name in task.coefficients:
            return layer, known_task(layer, task.coefficients[name], config.p, config.seed)
        make = new_core if config.form == "core" else new_task
        values = make(layer, config.p, config.phi, config.seed)
        values = replace(values, known=self._known_updates(config, name))
        return layer, values if config.init_weights else _random(values, config.seed)

    def _known_updates(self, config: ShareConfig, module: str) -> KnownUpdates | None:
        """A module's part of what a new task starts from."""
        share = self._share
        weights = start_weights(share, config.start, config.known or ()) if share else {}
        if share is None or not weights:
            return None
        tasks = [share.tasks[name] for name in weights]
        return known_updates(
            share.layers[module], tasks, module, weights, trained=bool(config.known)
        )

    def _put(self, new: SubspaceLayer, parent: nn.Module, name: str) -> SubspaceLayer:
        self._replace_module(parent, name, new, new.base_layer)
        return new

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """Put a module in the place of another.

        Unloading puts back the module itself: PEFT 0.21 would go on to set the ``weight`` of what
        it puts in place, which heads made of several modules do not have.
        """
        if isinstance(new_module, SubspaceLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Adapt the model as PEFT does, then put the known task's heads in place.

        An adapter that is added with the configuration object of one that is there begins as a
        copy of that one, as trained so far. TRL (1.16) calls ``add_adapter("ref",
        peft_config["default"])`` for the frozen reference of DPO, KTO, GRPO and RLOO, and then
        copies the parameters with ".default." in their names. Those of LoRA have it, which are
        modules by adapter; parameters by adapter end with the adapter's name.

        Args:
            model: the base model, changed in place.
            adapter_name: name of the adapter; its config is already in ``peft_config``.
            args, kwargs: passed on to PEFT.
        """
        config: ShareConfig = self.peft_config[adapter_name]
        self._copied = self._same_as(adapter_name, config)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            if config.save_basis:
                config.layout = layout(model, adapter_name)
            task = self._known_task(config)
            if self._copied is not None:
                copy_heads(model, self._copied, adapter_name)
            elif task is not None and config.init_weights:
                fill_heads(model, adapter_name, task)
            self._origins = {**self._origins, adapter_name: _origin(config)}
        finally:
            # A model may be copied or pickled later: not with the whole Share model in it.
            self._share = None
            self._copied = None

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "linear",
    ) -> None:
        """Add an adapter that is the exact weighed sum of others, temporary directions included.

        PEFT's "cat", "svd" and "linear" all mean this sum here: it needs no SVD, and no products of
        different adapters' factors are in it. Its pseudo-rank is the sum of theirs; it carries its
        bases when it is saved, and waits, untrained, until ``set_adapter``.

        Args:
            adapters: names of adapters in the model.
            weights: one for each, on top of its scale; negative ones subtract.
            adapter_name: name of the new adapter.
            combination_type: "linear", "cat" or "svd". Others work on single entries: merge the
                tasks, and use ``Share.combine``.

        Raises:
            OptionError: the name is taken, an adapter is not there or has heads of its own, or
                another combination is asked for.
        """
        named = dict(zip(adapters, weights, strict=False))
        given = len(adapters), len(weights)
        config = sum_config(self.peft_config, named, given, adapter_name, combination_type)
        layers = {n: m for n, m in self.model.named_modules() if isinstance(m, SubspaceLayer)}
        adapted = (name for name, layer in layers.items() if any(map(layer.has, named)))
        config.target_modules = set(map(unwrapped, adapted))  # type: ignore[assignment]
        self.peft_config[adapter_name], self._summed = config, named
        try:
            self.inject_adapter(self.model, adapter_name)
        except BaseException:
            del self.peft_config[adapter_name]
            raise
        finally:
            self._summed = None

    def _same_as(self, adapter: str, config: ShareConfig) -> str | None:
        """The adapter that has this very configuration, unchanged since it was made; else None."""
        same = (name for name in self.peft_config if self.peft_config[name] is config)
        origins = self._origins
        return next((n for n in same if n != adapter and origins.get(n) == _origin(config)), None)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cast to the base's dtype where PEFT's ``autocast_adapter_dtype`` is off.

        Otherwise PEFT casts 16-bit parameters to float32, in which they are made here already.
        """
        for layer in self.modules():
            if isinstance(layer, SubspaceLayer) and layer.has(adapter_name):
                dtype = layer._get_base_layer_device_and_dtype(layer.innermost)[1]
                if not autocast_adapter_dtype and dtype is not None and dtype.is_floating_point:
                    layer.cast(adapter_name, dtype)

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Merge adapters as PEFT does, in weights that no other module shares.

        Args:
            adapter_names: names of the adapters to merge; None: the active ones.
            safe_merge: check that every result is finite, before the base weight is changed.
        """
        self._untie()
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            self._untie()
        unloaded = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        if merge:
            say_untied(self.model)
        return unloaded

    def _untie(self) -> None:
        layers = self.model.named_modules()
        untie(self.model, [f"{n}.base_layer" for n, m in layers if isinstance(m, SubspaceLayer)])

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Tell the layers which adapter each row goes through (PEFT's ``adapter_names``)."""
        names = kwargs.get("adapter_names")
        routing = None
        if names is not None:
            self._check_names(names)
            routing = RowAdapters(tuple(names), int(kwargs.get("num_beams") or 1))
        with mixing(self.model, routing):
            yield

    def _check_names(self, names: Sequence[str]) -> None:
        unknown = sorted({n for n in names if n != BASE} - set(self.peft_config))
        if unknown:
            raise OptionError(
                "adapter_names",
                f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}",
                f"Known: {', '.join(sorted(self.peft_config))}, and {BASE}",
            )

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: ShareConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """PEFT's selection, with the bases only where the configuration asks for them."""
        selected: dict[str, Tensor] = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        hidden = _adapter_keys(model, state_dict)
        selected |= {key: value for key, value in state_dict.items() if key in hidden}
        if selected and config.basis_id is not None:
            selected[_BASIS_ID_KEY] = basis_mark(config)
        if config.save_basis:
            return selected
        return {k: v for k, v in selected.items() if not is_basis(k)}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: ShareConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Refuse coefficients without their bases."""
        state_dict = {
            unwrapped(k) if cls.prefix in k or is_basis(k) else k: v for k, v in state_dict.items()
        }
        mark = state_dict.pop(_BASIS_ID_KEY, None)
        if mark is not None:
            check_mark(config, adapter_name, mark)
        check_bases(config, state_dict)
        check_known(cls, model, adapter_name, state_dict)
        if config.layout is None:
            # Those of the Share model are in place, and their id has been checked.
            state_dict = {k: v for k, v in state_dict.items() if not is_basis(k)}
        keys = {
            cls._remove_adapter_name_from_key(key, adapter_name): key
            for key in _adapter_keys(model, model.state_dict())
            if f".{adapter_name}" in key or is_basis(key)
        }
        state_dict = {keys.get(k, k): v for k, v in state_dict.items()}
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        return remapped


def _adapter_keys(model: nn.Module, state_dict: Mapping[str, Tensor]) -> set[str]:
    """Keys of adapters and bases whose layer is wrapped.

    Wrappers that take their own name out of the keys (activation checkpointing, FSDP) hide them
    from PEFT, which looks for the layers' paths in front of the keys.
    """
    wrapped = {
        unwrapped(path)
        for path, module in model.named_modules()
        if isinstance(module, SubspaceLayer) and path != unwrapped(path)
    }
    parts = (*SubspaceLayer.adapter_layer_names, *_NAMES)
    return {
        key
        for key in (state_dict if wrapped else ())
        for part in parts
        if f".{part}" in key and unwrapped(key).partition(f".{part}")[0] in wrapped
    }


def _origin(config: ShareConfig) -> tuple[object, ...]:
    """What a configuration says of the values that an adapter begins with."""
    return tuple(getattr(config, name) for name in _ORIGIN)


def _random(values: StartValues, seed: int) -> StartValues:
    """With E (or C) random instead of zero: an update that changes the output."""
    generator = torch.Generator().manual_seed(seed + 1)
    if values.core is not None:
        return replace(values, core=torch.randn(values.core.shape, generator=generator))
    left = torch.randn(values.left_coefficients.shape, generator=generator)
    return replace(values, left_coefficients=left)


def is_basis(key: str) -> bool:
    """True for the key of a basis in a state dict."""
    return key.rpartition(".")[2] in _NAMES


def check_known(
    tuner: type[BaseTuner], model: nn.Module, adapter: str, state_dict: Mapping[str, Tensor]
) -> None:
    """Refuse a file of a task that starts from known ones where the adapter does not, or the other
    way round: PEFT passes over keys that only one of the two has.

    Raises:
        MismatchError: see above.
    """
    part = ".sharespace_known_"
    in_file = {_adapter_path(tuner, key, adapter) for key in state_dict if part in key}
    in_model = {
        _adapter_path(tuner, key, adapter)
        for key in model.state_dict()
        if part in key and key.endswith(f".{adapter}")
    }
    if in_file != in_model:
        raise MismatchError(
            f"adapter {adapter!r}",
            "the file is of a task that starts from other known tasks than the adapter does",
            "Make the model with the ShareConfig (start, known) that the file was trained with",
        )


def _adapter_path(tuner: type[BaseTuner], key: str, adapter: str) -> str:
    plain: str = tuner._remove_adapter_name_from_key(key, adapter)
    return plain


def basis_mark(config: ShareConfig) -> Tensor:
    """Id of the bases, and the version that has them, as the characters of one text (uint8).

    PEFT loads a file's tensors into an adapter that is there already without looking at the file's
    configuration, and so does a Trainer that resumes: what belongs together is said in the file.
    """
    version = "" if config.share_version is None else str(config.share_version)
    text = f"{config.basis_id}:{version}"
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def check_mark(config: ShareConfig, adapter: str, mark: Tensor) -> None:
    """Refuse coefficients that belong to other bases than the adapter that they are loaded into.

    Raises:
        MismatchError: they were trained in other bases.
    """
    expected, _, version = bytes(mark.cpu().tolist()).decode(errors="replace").partition(":")
    if config.basis_id is None or config.basis_id == expected:
        return
    number = f"share_version={version}" if version else "the Share model that it was trained in"
    raise MismatchError(
        f"adapter {adapter!r}",
        f"has the bases {config.basis_id[:12]}, but the coefficients in the file belong to "
        f"{expected[:12]}" + (f", those of version {version}" if version else ""),
        f"Make the model with ShareConfig(..., {number})" if version else f"Give {number}",
    )


def check_bases(config: ShareConfig, state_dict: Mapping[str, Tensor]) -> None:
    """Refuse a file without bases where the configuration says that it has them.

    Raises:
        MismatchError: coefficients without bases.
    """
    if config.layout is not None and not any(is_basis(key) for key in state_dict):
        raise MismatchError(
            "adapter",
            "its configuration says that it carries its bases, but the file has none",
            "Save it again with save_basis=True, or load it with layout=None and share=PATH",
        )


def register() -> None:
    """Make the method known to PEFT; importing ``sharespace.tuner`` does it.

    Once per process; calling it again changes nothing.
    """
    if SHARESPACE not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name="sharespace", config_cls=ShareConfig, model_cls=ShareTuner)
