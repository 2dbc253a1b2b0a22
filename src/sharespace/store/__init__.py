"""Share models on disk: versions that never change, files named by their content."""

from sharespace.store.layout import Manifest, Operation, TaskSummary, Version
from sharespace.store.prune import Pruned, prune
from sharespace.store.store import Checkout, checkout, commit, history, load, rollback

__all__ = [
    "Checkout",
    "Manifest",
    "Operation",
    "Pruned",
    "TaskSummary",
    "Version",
    "checkout",
    "commit",
    "history",
    "load",
    "prune",
    "rollback",
]
