"""3D object pose: a category a task, one after the other, also under occlusion."""

STAGES = ("occluded", "real", "standins")
HUB = ("real",)
