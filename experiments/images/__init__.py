"""Streams of small image tasks on two frozen backbones: a MobileNet and a small ViT."""

STAGES = ("standins",)
