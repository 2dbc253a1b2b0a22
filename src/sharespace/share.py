"""The library's face: build, merge, measure, store and export a Share model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from sharespace.errors import OptionError
from sharespace.extras import require
from sharespace.formats import ExportOptions, PlainLora, write_adapter
from sharespace.formats.engines import refuse_combining, requested_task
from sharespace.formats.format_registry import AdapterSources, open_adapters
from sharespace.formats.hub import download_store
from sharespace.formats.lora_config import COMPONENTS, PREFIX, refuse_unusable
from sharespace.linalg.dimension import Dimension
from sharespace.linalg.precision import checked_dtype
from sharespace.mixture_names import DEFAULT_COMBINATION
from sharespace.options import Limits, OptionType, check_option
from sharespace.store import Checkout, Operation, checkout, commit
from sharespace.subspace import fidelity as _fidelity
from sharespace.subspace import plan as _plan
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate, own_base
from sharespace.subspace.base_weights import checked_base, say_untied, untie, with_samples
from sharespace.subspace.basis_methods import DEFAULT_METHOD
from sharespace.subspace.build import Progress, initialise, refuse_erased
from sharespace.subspace.combine import Combination, with_combination
from sharespace.subspace.executor import LOCAL, Executor
from sharespace.subspace.fidelity import check_max_error, refuse_losses, warn_of_losses
from sharespace.subspace.merge import merge, union
from sharespace.subspace.naming import common_names, unwrapped
from sharespace.subspace.plan import Baselines, baselines
from sharespace.subspace.state import BuildSettings, ShareModel, Task, retrained

if TYPE_CHECKING:
    from torch.nn import Module

DEFAULT_VARIANCE = 0.99
"""Explained variance that ``from_adapters`` keeps when it is not told otherwise."""


class Share:
    """One subspace per layer and tiny coefficients per task, instead of many LoRA adapters.

    A value: every verb returns a new Share and leaves this one as it is. Only ``save`` touches the
    disk (and remembers what it wrote, so that the next ``save`` continues there).

    Examples:
        >>> share = Share.from_adapters(["adapters/sst2", "adapters/rte"], k=16)   # doctest: +SKIP
        >>> share.fidelity().mean_relative_error                                   # doctest: +SKIP
        >>> share.save("glue.share")                                               # doctest: +SKIP
        >>> share = Share.load("glue.share").merge(["adapters/mrpc"])              # doctest: +SKIP
        >>> share.save("glue.share")                                               # doctest: +SKIP
        >>> share.export("mrpc", "exported/mrpc")                                  # doctest: +SKIP
    """

    def __init__(
        self,
        model: ShareModel,
        *,
        origin: Checkout | None = None,
        pending: tuple[Operation, ...] = (),
    ) -> None:
        self._model = model
        self._path = origin.path if origin else None
        self._version = origin.version if origin else None
        self._pending = pending

    @property
    def model(self) -> ShareModel:
        """The plain value behind this face: bases, coefficients, ledgers."""
        return self._model

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order in which they came."""
        return tuple(self._model.tasks)

    @property
    def version(self) -> int | None:
        """Number of the stored version that this was loaded from or saved as."""
        return self._version.number if self._version else None

    @property
    def saved_version(self) -> int | None:
        """Number of the stored version of exactly this content; None: it was changed since."""
        return None if self._pending else self.version

    def __repr__(self) -> str:
        k = [max(layer.k) for layer in self._model.layers.values()]
        span = f"{min(k)} to {max(k)}" if k else "none"
        return (
            f"Share({len(self.tasks)} tasks, {len(k)} layers, k {span}, "
            f"method {self._model.settings.method!r}, base {self._model.base.id!r})"
        )

    @classmethod
    def from_adapters(
        cls,
        adapters: AdapterSources,
        *,
        k: int | Mapping[str, int | tuple[int, int]] | None = None,
        variance: float | None = None,
        error: float | None = None,
        budget: int | None = None,
        p: int | None = None,
        method: str = DEFAULT_METHOD,
        centred: bool = False,
        base: str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        progress: Progress | None = None,
        executor: Executor = LOCAL,
        memory: int | None = None,
    ) -> Share:
        """Build a Share model from LoRA adapters of one base model.

        Args:
            adapters: paths (PEFT, diffusers or kohya), Hub ids, or {name: path}; names default to
                the adapter's folder. One layer of all adapters is in memory at a time, and less
                where that would be more than ``memory``.
            k: subspace dimension of every layer and side; or pattern -> k or (k_left, k_right).
            variance: or the smallest k that explains this fraction of the updates (default 0.99).
            error: or the smallest k that leaves no task a larger relative error in any layer.
            budget: or the bytes that bases and coefficients may take together; modules that share
                nothing are then stored by their own SVDs.
            p: pseudo-rank of the tasks' coefficients; None: min(k, r), exact for the projection.
            method: how bases are found: "joint" (default), "share" (the paper's SVD of the
                factors), or one that ``sharespace.subspace.basis_methods.register`` made known.
            centred: centre the columns, as published; only where the method can ("share").
            base: id of the base model, where the adapters do not say or disagree.
            dtype: stored dtype, as ``torch.float16`` or ``"float16"``; None: follows the adapters.
            device: where to compute.
            seed: of the randomised range finder.
            progress: called as (module, modules done, modules in all).
            executor: where the layers are computed; default here, one after the other. With
                ``sharespace.subspace.executor.Dask`` in other processes, with the same result.
            memory: bytes that one layer of all adapters may take (default 2 GB). A layer that
                would take more is built out of core, from a few passes over the files, with nearly
                the same result: see ``docs/howto/out-of-core.md``. The rules error and budget and
                method "share" cannot be: an OptionError where ``memory`` was given, in memory
                otherwise.

        Raises:
            AdapterError: an adapter cannot be read.
            MismatchError: the adapters are not of one base model.
            TaskExistsError: two adapters have the same name.
            OptionError: an option has no usable value.
        """
        # Options first: a mistake in them is told before any adapter is read.
        dimension = _dimension(k, variance, error, budget)
        settings = BuildSettings(method=method, centred=centred, p=p, seed=seed)
        stored, memory = checked_dtype(dtype), _checked("memory", memory)
        model = initialise(
            open_adapters(adapters),
            dimension,
            settings,
            base=BaseModel(base) if base else None,
            dtype=stored,
            device=device,
            progress=progress,
            executor=executor,
            memory=memory,
        )
        refuse_erased(model)
        warn_of_losses(None, model)
        return cls(model, pending=(Operation("init", tuple(model.tasks)),))

    @classmethod
    def plan(cls, adapters: AdapterSources, **options: Any) -> _plan.BuildPlan:
        """What ``from_adapters`` with the same options would be worth; nothing is written.

        Args:
            adapters: as in ``from_adapters``.
            options: of ``from_adapters``.

        Returns:
            Bytes now and as Share, break-even, expected error and shared fraction of each task, own
            SVDs at the same bytes, and a verdict.

        Raises:
            OptionError, AdapterError, MismatchError: as in ``from_adapters``.
        """
        originals: list[Adapter] = []

        def opened() -> Iterator[Adapter]:
            # Run by ``from_adapters`` after its options are checked; the originals are then
            # compared with what was built.
            originals.extend(open_adapters(adapters))
            yield from originals

        model = cls.from_adapters(opened(), **options).model
        return _plan.plan(model, common_names(originals, model, stated=True))

    @classmethod
    def load(cls, path: str | os.PathLike[str], version: int | None = None) -> Share:
        """Open a stored Share model; tensors are read when they are needed.

        Args:
            path: the store's directory.
            version: an earlier version's number; None: the current one.

        Raises:
            StoreNotFoundError, CorruptStoreError, SchemaVersionError: see ``sharespace.errors``.
        """
        # Absolute, because tensors are read later, perhaps from another working directory.
        origin = checkout(Path(path).absolute(), version)
        return cls(origin.model, origin=origin)

    @classmethod
    def from_pretrained(cls, repository: str, version: int | None = None) -> Share:
        """Open a Share model that ``push`` brought to the Hub.

        Args:
            repository: ``user/repo`` or ``user/repo@revision``; or a local directory.
            version: as in ``load``.

        Raises:
            AdapterError: no such repository or revision, no access, or no connection.
            StoreNotFoundError, CorruptStoreError, SchemaVersionError: as in ``load``.
        """
        return cls.load(download_store(repository), version)

    def save(self, path: str | os.PathLike[str] | None = None) -> int:
        """Commit as the next version of the store at ``path``, or as a new store.

        Args:
            path: None: where it was loaded from or saved to before.

        Returns:
            The version's number. Where nothing changed since, no version is added.

        Raises:
            StoreExistsError: another store, or something else, is at the path.
            StoreConflictError: somebody else committed in between; load again and repeat.
            StoreLockedError: another writer is at work.
        """
        target = Path(path).absolute() if path is not None else self._path
        if target is None:
            raise OptionError("save", "this Share model has no path yet", "Say where: save(path)")
        # Only the store that this came from has its history to continue; elsewhere it is a copy.
        continues = target == self._path
        if continues and not self._pending and self._version is not None:
            return self._version.number
        parent = self._version if continues else None
        self._version = commit(
            target, self._model, operation=self._operation(), expected_parent=parent
        )
        self._path, self._pending = target, ()
        # From here on what a task carries is read from the store: its adapter may be deleted.
        self._model = checkout(target, self._version.number).model
        return self._version.number

    def _operation(self) -> Operation:
        """All that happened since the last commit, as one entry of the history."""
        verbs = "+".join(dict.fromkeys(o.verb for o in self._pending)) or "copy"
        return Operation(verbs, tuple(dict.fromkeys(n for o in self._pending for n in o.tasks)))

    def _then(self, model: ShareModel, verb: str, tasks: Sequence[str]) -> Share:
        following = Share(model, pending=(*self._pending, Operation(verb, tuple(tasks))))
        following._path, following._version = self._path, self._version
        return following

    def merge(
        self,
        adapters: AdapterSources,
        *,
        cap: int | None = None,
        max_error: float | None = None,
        base: str | None = None,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        executor: Executor = LOCAL,
        memory: int | None = None,
    ) -> Share:
        """Add adapters as new tasks; the old adapters are not needed.

        Below the cap nothing is lost; at the cap every task is re-expressed in new bases and the
        ledger says what that cost.

        Args:
            adapters: as in ``from_adapters``.
            cap: a new cap on every layer's dimension; None: the caps that it has.
            max_error: refuse the merge where it would leave a task, old or new, with a larger
                bound on its relative error; None: a ``LossWarning`` tells of large ones.
            base: id of the base model, where the adapters name it differently.
            executor: where the layers are computed.
            device: where to compute.
            progress: called as (module, modules done, modules in all).
            memory: bytes that one layer of all newcomers may take, as in ``from_adapters``.

        Raises:
            AdapterError: an adapter cannot be read.
            MismatchError: the adapters are not of this base model.
            TaskExistsError: a task has the name of one of them.
            OptionError: an option has no usable value, or a task would lose more than it may.
        """
        cap, memory = _checked("cap", cap), _checked("memory", memory)
        check_max_error(max_error)
        new = open_adapters(adapters)
        merged = merge(
            self._model,
            new,
            cap=cap,
            base=BaseModel(base) if base else None,
            device=device,
            progress=progress,
            executor=executor,
            memory=memory,
        )
        refuse_erased(merged)
        refuse_losses(self._model, merged, max_error)
        warn_of_losses(self._model, merged)
        return self._then(merged, "merge", [a.name for a in new])

    def union(self, other: Share, *, cap: int | None = None) -> Share:
        """The tasks of both, with the settings of this one.

        Args:
            other: a Share model of the same base model.
            cap: a new cap on every layer's dimension; None: the caps that this one has.

        Raises:
            TaskExistsError: a task is in both.
            MismatchError: they are of different base models.
        """
        joined = union(self._model, other.model, cap=cap)
        warn_of_losses(self._model, joined)
        return self._then(joined, "union", other.tasks)

    def combine(
        self,
        weights: Mapping[str, float],
        *,
        name: str,
        method: str = DEFAULT_COMBINATION,
        scales: Mapping[str, float] | None = None,
        heads: str | None = None,
        **options: float,
    ) -> Share:
        """With a new task that is combined from others; bases and tasks stay as they are.

        Args:
            weights: task -> weight, for example ``{"legal": 0.7, "medical": 0.3}``; a negative one
                subtracts the task.
            name: of the new task.
            method: "linear" (the weighed sum of the updates, exact), "task_arithmetic" (the same),
                "ties" (option ``density``), or one that
                ``sharespace.subspace.combine.register_combination`` made known.
            scales: pattern for names of layers -> factor of all weights there; the first pattern
                that matches counts, and a layer that none matches keeps the weights.
            heads: task whose head, labels, tokenizer and configuration the new one has; None: they
                must be the same in all.
            options: of the method.

        Returns:
            The Share model with the task; ``task(name).ranks`` says its rank in each layer.

        Raises:
            TaskNotFoundError: there is no task of a name in ``weights``.
            TaskExistsError: there is a task ``name``.
            OptionError: a weight, the name, the method or one of its options cannot be used.
            MismatchError: heads or tokenizers differ, and ``heads`` does not say whose to take.
            UnsupportedAdapterError: a task's update is more than its factors, such as DoRA's.
        """
        combination = Combination(weights, method, scales or {}, heads, options)
        for part in map(self.task, combination.weights):
            refuse_combining(f"task {part.name!r}", part.config, part.kept)
        combined = with_combination(self._model, combination, name)
        warn_of_losses(self._model, combined)
        return self._then(combined, "combine", [name])

    def remove(self, *names: str) -> Share:
        """Without these tasks; the others stay as they are, bit for bit.

        Args:
            names: of the tasks.

        Raises:
            TaskNotFoundError: there is none of that name.
        """
        return self._then(self._model.without_tasks(*names), "remove", names)

    def rename(self, old: str, new: str) -> Share:
        """With a task under another name.

        Args:
            old: its name.
            new: its name from now on.

        Raises:
            TaskNotFoundError: there is none of the old name.
            TaskExistsError: there is one of the new name.
        """
        return self._then(self._model.with_renamed(old, new), "rename", [old, new])

    def retrained(
        self,
        name: str,
        pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
        kept: Mapping[str, torch.Tensor],
        *,
        event: Literal["finetune", "calibrate"] = "finetune",
        base_samples: Mapping[str, torch.Tensor] | None = None,
    ) -> Share:
        """With a task's coefficients and heads trained further in the same bases.

        See ``sharespace.learn.finetune`` and ``calibrate``, which call it.

        Args:
            name: of the task.
            pairs: module -> (E, F), k_left x p and k_right x p.
            kept: heads, by the key in the adapter's file.
            event: "finetune": the task is now what was trained, and its ledger starts anew;
                "calibrate": it is still the adapter it came as, and the ledger goes on.
            base_samples: of the base weights that it was trained on, where they were at hand.

        Raises:
            TaskNotFoundError: there is none of that name.
            MismatchError: a pair does not fit its module, or the base weights are others.
        """
        model = retrained(self._model, name, pairs, kept, event)
        known = with_samples(f"task {name!r}", model.base_samples, base_samples or {})
        return self._then(replace(model, base_samples=known), event, [name])

    def task(self, name: str) -> Task:
        """A task's coefficients, ledger and all that it carries.

        Args:
            name: of the task.

        Raises:
            TaskNotFoundError: there is none of that name.
        """
        return self._model.task(name)

    def updates(self, name: str) -> Mapping[str, LayerUpdate]:
        """A task's low-rank updates by module.

        Args:
            name: of the task, or of a mixture such as ``legal:0.7+medical:0.3``.

        Returns:
            Module -> up (n x p) and down (p x d) in the stored dtype, with scaling 1.

        Raises:
            TaskNotFoundError: there is none of that name.
        """
        layers, task = self._model.layers, requested_task(self._model, name)
        return {m: value.as_update(layers[m]) for m, value in task.coefficients.items()}

    def fidelity(self, against: AdapterSources = ()) -> _fidelity.Fidelity:
        """What is kept of every task.

        Args:
            against: the original adapters, to measure the errors of these tasks. Without them
                errors come from the ledger: exact after the build, estimates after merges, and
                always with a bound.

        Raises:
            TaskNotFoundError: one of the adapters has the name of no task.
            AdapterError: an adapter cannot be read.
        """
        return _fidelity.fidelity(self._model, self._renamed(against))

    def baselines(self, originals: AdapterSources, seed: int = 0) -> Baselines:
        """The errors of simpler ways to store the same adapters, which a Share model must beat.

        Args:
            originals: the original adapters of all tasks.
            seed: of the random basis.

        Returns:
            The errors of a mean adapter, of a random basis, and of own SVDs at equal bytes.

        Raises:
            OptionError: the adapters are not those of all tasks.
        """
        return baselines(self._model, self._renamed(originals), seed)

    def _renamed(self, adapters: AdapterSources) -> list[Adapter]:
        """Original adapters with the names that the model has for their modules."""
        return common_names(open_adapters(adapters), self._model, stated=True)

    def export(
        self,
        task: str,
        path: str | os.PathLike[str],
        *,
        to: str = "peft",
        rank: int | None = None,
        dtype: torch.dtype | str | None = None,
        base: str | None = None,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write a task as plain LoRA, scaling baked in, and what the format takes beside it.

        Args:
            task: name of the task, or of a mixture such as ``legal:0.7+medical:0.3``.
            path: a new directory.
            to: "peft" (loads with ``PeftModel.from_pretrained``), "diffusers", "kohya", "vllm",
                "sglang", "gguf" (llama.cpp), or a registered format; ``docs/howto/export.md``
                says what each takes.
            rank: pad all layers to this rank; None: the largest that a layer needs.
            dtype: of the factors; None: the stored dtype.
            base: folder or Hub id of the base model, whose ``config.json`` "gguf" needs and
                "sglang" may need; None: the one the task states.
            overwrite: replace an earlier export, as it was written; nothing else is ever replaced.

        Returns:
            The directories or files written; one per component for a pipeline's adapter as "peft".

        Raises:
            OptionError: no such format, or an option has no usable value.
            UnsupportedAdapterError: the format has no place for something in the task.
        """
        stored = requested_task(self._model, task)
        model, written = self._model, checked_dtype(dtype) or self._model.dtype
        own, kept, files = own_base(stored.config, model.base), stored.kept, stored.files
        plain = PlainLora(
            self.updates(task), model.shapes, kept, stored.config, own, files, stored.labels
        )
        # For the shapes of the base's modules, which are the same in all that the tasks state.
        config = base or (model.base.id if own.id is None else None)
        options = ExportOptions(rank, written, config, overwrite=overwrite)
        return write_adapter(path, plain, options, to=to)

    def merge_into_base(self, model: Module, task: str) -> Module:
        """The base model with a task merged into its weights, heads included, through PEFT.

        Args:
            model: the base model (a component of a pipeline for a diffusers adapter); changed in
                place, as PEFT does. A weight that the task changes and that other modules share
                (tied embeddings) becomes the module's own first, and the configuration says so.
            task: name of the task.

        Returns:
            The model, without PEFT's layers.

        Raises:
            MissingExtraError: PEFT is not installed.
            OptionError: the task spans several components of a pipeline.
            UnsupportedAdapterError: the task's config has a field that changes what factors do.
        """
        stored = self.task(task)
        refuse_unusable(f"task {task!r}", stored.config)
        self._check_base(model, task)
        peft = require("peft", "train")
        with tempfile.TemporaryDirectory() as folder:
            written = self.export(task, Path(folder) / "adapter")
            if len(written) > 1:
                names = ", ".join(p.name for p in written)
                raise OptionError(
                    f"task {task!r}", f"it spans components {names}", "Export it and load each"
                )
            untie(model, [*stored.coefficients, *(k.removeprefix(PREFIX) for k in stored.kept)])
            # safe_merge: PEFT refuses to merge what would make a weight not finite.
            merged: Module = peft.PeftModel.from_pretrained(model, written[0]).merge_and_unload(
                safe_merge=True
            )
        say_untied(merged)
        return merged

    def _check_base(self, model: Module, task: str) -> None:
        """Refuse a model of other weights than the tasks' base; PEFT checks its modules.

        Raises:
            MismatchError: the weights are those of another base model.
        """
        stored = self.task(task)
        modules = {unwrapped(name): module for name, module in model.named_modules()}
        # A pipeline's component has its modules under names without the component.
        in_pipeline = COMPONENTS in stored.config
        names = {m: m.partition(".")[2] if in_pipeline else m for m in stored.coefficients}
        known = {m: modules[n] for m, n in names.items() if n in modules}
        checked_base(f"model {type(model).__name__}", self._model.base_samples, known)


def _dimension(
    k: int | Mapping[str, int | tuple[int, int]] | None,
    variance: float | None,
    error: float | None,
    budget: int | None,
) -> Dimension:
    if k is None and variance is None and error is None and budget is None:
        variance = DEFAULT_VARIANCE
    return Dimension(k=k, variance=variance, error=error, budget=budget)


def _checked(name: str, number: int | None) -> int | None:
    """The number, which must be None or a whole number of at least 1."""
    check_option(name, number, OptionType(int, optional=True), Limits(least=1))
    return number
