"""Share models on disk: versions that never change, files named by their content."""

from sharespace.store.commits import (
    Checkout,
    checkout,
    coefficient_files,
    commit,
    history,
    known_starts,
    load,
)
from sharespace.store.directory import refuse_existing
from sharespace.store.edit import Pruned, prune, receive, remove, rename, rollback
from sharespace.store.schema import Manifest, Operation, TaskSummary, Version
from sharespace.store.verification import Finding, Report, verify

__all__ = [
    "Checkout",
    "Finding",
    "Manifest",
    "Operation",
    "Pruned",
    "Report",
    "TaskSummary",
    "Version",
    "checkout",
    "coefficient_files",
    "commit",
    "history",
    "known_starts",
    "load",
    "prune",
    "receive",
    "refuse_existing",
    "remove",
    "rename",
    "rollback",
    "verify",
]
