"""One Share model for several image styles of a small Stable Diffusion, learned style by style."""

STAGES = ("adapters", "compare", "real_adapter", "real")
HUB = ("real",)
