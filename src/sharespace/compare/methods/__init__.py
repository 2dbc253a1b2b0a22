"""The compared methods of the package; importing this registers them."""

# isort: off
# What every comparison is measured by comes first: several methods start from the own LoRAs that
# are trained there, and a comparison of all methods runs them in the order of their registration.
from sharespace.compare.methods import references

# isort: on
from sharespace.compare.methods import (
    ewc,
    joint_lora,
    olora,
    osf,
    post_hoc,
    random_basis,
    replay,
    sequential,
    share_stream,
    warm_lora,
)

__all__ = [
    "ewc",
    "joint_lora",
    "olora",
    "osf",
    "post_hoc",
    "random_basis",
    "references",
    "replay",
    "sequential",
    "share_stream",
    "warm_lora",
]
