"""sharespace: one low-rank subspace per layer instead of hundreds of LoRA adapters.

    >>> import sharespace
    >>> share = sharespace.Share.from_adapters(["adapters/sst2", "adapters/rte"])  # doctest: +SKIP
    >>> share.save("glue.share")                                                   # doctest: +SKIP

Start with ``help(sharespace.Share)``. Everything that a user needs is named here; it is imported
when it is first used. Names that need an optional dependency are there where it is installed.
Method: arXiv 2602.06043.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sharespace.extras import is_installed as _is_installed
from sharespace.extras import missing_extra as _missing_extra

if TYPE_CHECKING:
    from sharespace.errors import (
        AdapterError,
        ClusterError,
        ContributionError,
        CorruptAdapterError,
        CorruptStoreError,
        InboxError,
        MismatchError,
        MissingExtraError,
        OptionError,
        QueueFullError,
        RecipeError,
        SchemaVersionError,
        ServeError,
        SharespaceError,
        StoreConflictError,
        StoreError,
        StoreExistsError,
        StoreLockedError,
        StoreNotFoundError,
        TaskExistsError,
        TaskNotFoundError,
        UnavailableError,
        UnsupportedAdapterError,
    )
    from sharespace.formats import read_adapter
    from sharespace.gather import pull, push
    from sharespace.learn import (
        TaskMethod,
        TrainingSettings,
        adapt,
        calibrate,
        finetune,
        merge_from,
    )
    from sharespace.linalg.dimension import Dimension
    from sharespace.serve.mixed import MixedTasks
    from sharespace.share import Share
    from sharespace.store import history, prune, rollback, verify
    from sharespace.subspace.adapter import Adapter, LayerUpdate
    from sharespace.subspace.fidelity import Fidelity
    from sharespace.subspace.plan import BuildPlan
    from sharespace.subspace.state import ShareModel, Task
    from sharespace.tuner import ShareConfig, collect, publish, release

__version__ = "0.1.0"

# Where each name is defined. They are imported on first use, so that neither `import sharespace`
# nor `sharespace --help` imports torch, which takes seconds.
_HOMES = {
    "Adapter": "sharespace.subspace.adapter",
    "AdapterError": "sharespace.errors",
    "BuildPlan": "sharespace.subspace.plan",
    "ClusterError": "sharespace.errors",
    "ContributionError": "sharespace.errors",
    "CorruptAdapterError": "sharespace.errors",
    "CorruptStoreError": "sharespace.errors",
    "Dimension": "sharespace.linalg.dimension",
    "Fidelity": "sharespace.subspace.fidelity",
    "InboxError": "sharespace.errors",
    "LayerUpdate": "sharespace.subspace.adapter",
    "MismatchError": "sharespace.errors",
    "MissingExtraError": "sharespace.errors",
    "MixedTasks": "sharespace.serve.mixed",
    "OptionError": "sharespace.errors",
    "QueueFullError": "sharespace.errors",
    "RecipeError": "sharespace.errors",
    "SchemaVersionError": "sharespace.errors",
    "ServeError": "sharespace.errors",
    "Share": "sharespace.share",
    "ShareConfig": "sharespace.tuner",
    "ShareModel": "sharespace.subspace.state",
    "SharespaceError": "sharespace.errors",
    "StoreConflictError": "sharespace.errors",
    "StoreError": "sharespace.errors",
    "StoreExistsError": "sharespace.errors",
    "StoreLockedError": "sharespace.errors",
    "StoreNotFoundError": "sharespace.errors",
    "Task": "sharespace.subspace.state",
    "TaskExistsError": "sharespace.errors",
    "TaskMethod": "sharespace.learn",
    "TaskNotFoundError": "sharespace.errors",
    "TrainingSettings": "sharespace.learn",
    "UnavailableError": "sharespace.errors",
    "UnsupportedAdapterError": "sharespace.errors",
    "adapt": "sharespace.learn",
    "calibrate": "sharespace.learn",
    "collect": "sharespace.tuner",
    "finetune": "sharespace.learn",
    "history": "sharespace.store",
    "merge_from": "sharespace.learn",
    "prune": "sharespace.store",
    "publish": "sharespace.tuner",
    "pull": "sharespace.gather",
    "push": "sharespace.gather",
    "read_adapter": "sharespace.formats",
    "release": "sharespace.tuner",
    "rollback": "sharespace.store",
    "verify": "sharespace.store",
}

_EXTRAS = {
    "sharespace.learn": "train",
    "sharespace.serve.mixed": "train",
    "sharespace.tuner": "train",
}
"""The extra that a home needs; the others need the core alone."""

__all__ = [
    "Adapter",
    "AdapterError",
    "BuildPlan",
    "ClusterError",
    "ContributionError",
    "CorruptAdapterError",
    "CorruptStoreError",
    "Dimension",
    "Fidelity",
    "InboxError",
    "LayerUpdate",
    "MismatchError",
    "MissingExtraError",
    "MixedTasks",
    "OptionError",
    "QueueFullError",
    "RecipeError",
    "SchemaVersionError",
    "ServeError",
    "Share",
    "ShareConfig",
    "ShareModel",
    "SharespaceError",
    "StoreConflictError",
    "StoreError",
    "StoreExistsError",
    "StoreLockedError",
    "StoreNotFoundError",
    "Task",
    "TaskExistsError",
    "TaskMethod",
    "TaskNotFoundError",
    "TrainingSettings",
    "UnavailableError",
    "UnsupportedAdapterError",
    "__version__",
    "adapt",
    "calibrate",
    "collect",
    "finetune",
    "history",
    "merge_from",
    "prune",
    "publish",
    "pull",
    "push",
    "read_adapter",
    "release",
    "rollback",
    "verify",
]

# `from sharespace import *` and `help(sharespace)` ask for every name of `__all__`, so a name whose
# extra is not installed would make both fail: it is left out, and says what is missing when it is
# asked for by itself.
if not _is_installed("train"):
    __all__[:] = [name for name in __all__ if _HOMES.get(name) not in _EXTRAS]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sharespace' has no attribute {name!r}")
    home = _HOMES[name]
    extra = _EXTRAS.get(home)
    if extra is not None and not _is_installed(extra):
        raise _missing_extra(f"sharespace.{name}", extra)
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
