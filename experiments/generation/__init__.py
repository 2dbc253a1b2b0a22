"""A small language model: adapters merged batch by batch, tasks learned in their subspace."""

STAGES = ("merge", "weighing", "real", "standins")
HUB = ("real",)
