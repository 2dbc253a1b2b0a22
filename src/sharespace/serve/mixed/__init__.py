"""Batches whose rows belong to different tasks, in one forward pass of the base model."""

from sharespace.serve.mixed.mixed_tasks import MixedTasks

__all__ = ["MixedTasks"]
