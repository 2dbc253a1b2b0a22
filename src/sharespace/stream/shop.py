"""What learning needs beside a task: processors, data and base models, each read once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sharespace.recipe import Recipe, TaskData, TaskSpec, load_processor, load_task_data
from sharespace.stream.events import Event, Observer
from sharespace.stream.folder import RunFolder
from sharespace.stream.models import BaseModels


@dataclass(eq=False)
class Workshop:
    """At hand while a stream is at work."""

    recipe: Recipe
    folder: RunFolder
    models: BaseModels
    observe: Observer
    bars: bool = False

    @cached_property
    def _processors(self) -> dict[str, Any]:
        return {}

    def processor(self, spec: TaskSpec) -> Any:
        """The tokenizer or image processor for a task."""
        kind = spec.settings.task_type
        if kind not in self._processors:
            self._processors[kind] = load_processor(self.recipe, kind)
        return self._processors[kind]

    def data(self, spec: TaskSpec) -> TaskData:
        """A task's data, read now.

        Raises:
            RecipeError: it is gone, or cannot be used.
        """
        return load_task_data(spec, self.processor(spec))

    def model(self, spec: TaskSpec, outputs: int) -> Any:
        """The base model with a new head, which pads as the tokenizer does."""
        model: Any = self.models.model(spec, outputs)
        if getattr(model.config, "pad_token_id", None) is None:
            pad = getattr(self.processor(spec), "pad_token_id", None)
            model.config.pad_token_id = pad
        return model

    def say(self, stage: Any, spec: TaskSpec, text: str) -> None:
        """Tell of something that has happened to a task."""
        self.observe(Event(stage, spec.name, f"{spec.name}: {text}"))

    def tidy(self, spec: TaskSpec) -> None:
        """Remove Trainer's checkpoints of early stopping; what trackers wrote stays."""
        for folder in self.folder.trackers(spec.name).glob("checkpoint-*"):
            shutil.rmtree(folder)
