"""The methods that the experiments compare (names of ``sharespace.compare``)."""

from __future__ import annotations

METHODS = (
    "head_only",
    "per_task_lora",
    "joint_lora",
    "share_strict",
    "share_full",
    "random_basis",
    "sequential_lora",
    "o_lora",
    "ewc",
    "osf",
    "replay",
    "mean_adapter",
    "task_arithmetic",
    "ties",
    "own_svd",
    "projection",
)

ORDER_FREE = (
    "head_only",
    "per_task_lora",
    "joint_lora",
    "random_basis",
    "mean_adapter",
    "task_arithmetic",
    "ties",
    "own_svd",
    "projection",
)
"""Methods that know no order: run once a seed."""
