"""sharespace: one low-rank subspace per layer instead of hundreds of LoRA adapters.

    >>> import sharespace
    >>> share = sharespace.Share.from_adapters(["adapters/sst2", "adapters/rte"])  # doctest: +SKIP
    >>> share.save("glue.share")                                                   # doctest: +SKIP

Start with ``help(sharespace.Share)``. Method: arXiv 2602.06043.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sharespace.errors import SharespaceError
    from sharespace.formats import read_adapter
    from sharespace.linalg.dimension import Dimension
    from sharespace.share import Share
    from sharespace.store import history, prune, rollback, verify
    from sharespace.subspace.adapter import Adapter, LayerUpdate
    from sharespace.subspace.fidelity import Fidelity
    from sharespace.subspace.plan import BuildPlan
    from sharespace.subspace.state import ShareModel, Task
    from sharespace.tuner import ShareConfig

__version__ = "0.1.0"

# Loaded on first use, so that `sharespace --help` does not import torch.
_HOMES = {
    "Adapter": "sharespace.subspace.adapter",
    "Dimension": "sharespace.linalg.dimension",
    "Fidelity": "sharespace.subspace.fidelity",
    "LayerUpdate": "sharespace.subspace.adapter",
    "BuildPlan": "sharespace.subspace.plan",
    "Share": "sharespace.share",
    "ShareConfig": "sharespace.tuner",
    "ShareModel": "sharespace.subspace.state",
    "SharespaceError": "sharespace.errors",
    "Task": "sharespace.subspace.state",
    "history": "sharespace.store",
    "prune": "sharespace.store",
    "read_adapter": "sharespace.formats",
    "rollback": "sharespace.store",
    "verify": "sharespace.store",
}

__all__ = [
    "Adapter",
    "BuildPlan",
    "Dimension",
    "Fidelity",
    "LayerUpdate",
    "Share",
    "ShareConfig",
    "ShareModel",
    "SharespaceError",
    "Task",
    "__version__",
    "history",
    "prune",
    "read_adapter",
    "rollback",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sharespace' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
