"""For people with a training loop of their own: merge into a stored Share model when it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sharespace.errors import OptionError, StoreConflictError
from sharespace.learn.merging import merge_from
from sharespace.share import Share
from sharespace.subspace.state import check_new_names

_ATTEMPTS = 5
"""Commits of others that a merge may meet before it gives up."""


class MergeIntoShare(TrainerCallback):
    """Commit the trained task to a Share model on disk at the end of training.

    ::

        Trainer(model=model, ..., callbacks=[MergeIntoShare("glue.share")]).train()

    The best weights, where ``load_best_model_at_end`` asks for them. Before training starts, a
    store that cannot be read and a name that is taken are refused.

    Args:
        path: of the store; its current version is read when training ends, so that tasks which
            others merged meanwhile are kept.
        task: name; None: that of the ``ShareConfig``.
        adapter: PEFT's name for it.
        k: a new cap for every layer; None: the caps that it has.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        task: str | None = None,
        adapter: str = "default",
        k: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.task = task
        self.adapter = adapter
        self.k = k

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse now what would fail after hours of training.

        Raises:
            OptionError: nothing names the task.
            TaskExistsError: the name is taken.
            StoreError: the store cannot be read.
        """
        config = getattr(kwargs["model"], "peft_config", {}).get(self.adapter)
        name = self.task or getattr(config, "task", None)
        if config is None or not name:
            why = "the task has no name" if config else f"no PEFT adapter {self.adapter!r} here"
            raise OptionError("MergeIntoShare", why, "Give task=NAME, and a PeftModel")
        check_new_names([name], Share.load(self.path).tasks)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Once, on the main process."""
        if state.is_world_process_zero:
            self._commit(kwargs["model"])

    def _commit(self, model: Any) -> None:
        """Merge and save; where somebody else committed in between, once more on top of that.

        Raises:
            StoreConflictError: that happened too often.
        """
        for left in reversed(range(_ATTEMPTS)):
            share = Share.load(self.path)
            merged = merge_from(share, model, task=self.task, adapter=self.adapter, k=self.k)
            try:
                merged.save()
                return
            except StoreConflictError:
                if not left:
                    raise
