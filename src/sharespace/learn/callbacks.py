"""A callback for any Trainer: merge into a stored Share model when the training ends."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn
from transformers import TrainerCallback

from sharespace.errors import StoreConflictError
from sharespace.learn.merging import check_base_of, merge_trained, named_adapter, trained_adapter
from sharespace.protocols import ProgressState
from sharespace.share import Share
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.state import check_new_names

_ATTEMPTS = 5
"""Times that a merge is tried while others commit at the same moment."""


class MergeIntoShare(TrainerCallback):
    """Commit the trained task to a Share model on disk at the end of training.

    ::

        Trainer(model=model, ..., callbacks=[MergeIntoShare("glue.share")]).train()

    What is merged is the best weights where ``load_best_model_at_end`` asks for them, else the
    last. Before training starts, a store that cannot be read and a name that is taken are refused.

    Args:
        path: of the store; its current version is read when training ends, so that tasks which
            others merged meanwhile are kept.
        task: the task's name; None: that of the ``ShareConfig``.
        adapter: PEFT's name for it.
        cap: a new cap of the dimension of every layer and side; None: the caps that it has.
        base: id of the base model, as for ``merge_from``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        task: str | None = None,
        adapter: str = "default",
        cap: int | None = None,
        base: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.task = task
        self.adapter = adapter
        self.cap = cap
        self.base = base

    def on_train_begin(
        self,
        args: object,
        state: ProgressState,
        control: object,
        *,
        model: nn.Module,
        **others: object,
    ) -> None:
        """Refuse now what would fail after hours of training.

        Args:
            args, control, others: what ``Trainer`` gives to every callback; not used.
            state: the progress of the training; not used.
            model: the PEFT model that is to be trained.

        Raises:
            OptionError: nothing names the task.
            TaskExistsError: the name is taken.
            StoreError: the store cannot be read.
            MismatchError: the model's base is another one than the Share model's, or its
                parameters are cut into parts in a way that they cannot be gathered from.
        """
        from sharespace.tuner.sharding import refuse_unreadable

        refuse_unreadable("MergeIntoShare", model)
        _, name = named_adapter("MergeIntoShare", model, self.task, self.adapter)
        share = Share.load(self.path)
        check_new_names([name], share.tasks)
        check_base_of(share, model, self.adapter, self.base)

    def on_train_end(
        self,
        args: object,
        state: ProgressState,
        control: object,
        *,
        model: nn.Module,
        **others: object,
    ) -> None:
        """Merge and save, in the main process only; parts of parameters come from all processes.

        Args:
            args, control, others: what ``Trainer`` gives to every callback; not used.
            state: says whether this is the main process.
            model: the PEFT model that was trained.

        Raises:
            StoreConflictError: others committed at the same moment, too often.
        """
        from sharespace.tuner.sharding import is_cut

        if state.is_world_process_zero or is_cut(model):
            trained = trained_adapter(model, self.task, self.adapter, patient=True)
            if state.is_world_process_zero:
                self._commit(trained)

    def _commit(self, trained: Adapter) -> None:
        """Merge and save; where somebody else committed in between, once more on top of that.

        Raises:
            StoreConflictError: that happened too often.
        """
        for remaining in reversed(range(_ATTEMPTS)):
            share = Share.load(self.path)
            merged = merge_trained(share, trained, cap=self.cap, base=self.base)
            try:
                merged.save()
                return
            except StoreConflictError:
                if not remaining:
                    raise
