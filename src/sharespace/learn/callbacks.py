"""For people with a training loop of their own: merge into a stored Share model when it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sharespace.learn.adapt import merge_from
from sharespace.share import Share


class MergeIntoShare(TrainerCallback):
    """Commit the trained task to a Share model on disk at the end of training.

    ::

        Trainer(model=model, ..., callbacks=[MergeIntoShare("glue.share")]).train()

    Args:
        path: of the store; its current version is read when training ends, so that tasks which
            others merged meanwhile are kept.
        task: name; None: that of the ``ShareConfig``.
        k: a new cap for every layer; None: the caps that it has.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, task: str | None = None, k: int | None = None
    ) -> None:
        self.path = Path(path)
        self.task = task
        self.k = k

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Once, on the main process."""
        if state.is_world_process_zero:
            share = Share.load(self.path)
            merge_from(share, kwargs["model"], task=self.task, k=self.k).save()
