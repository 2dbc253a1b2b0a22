"""Serve every task of a Share model from one base model: engine, and OpenAI-compatible HTTP."""

from sharespace.serve.engine import Engine, Limits
from sharespace.serve.http import make_app
from sharespace.serve.requests import Classify, Embed, Generate, Piece, Sampling, Scores, Vector
from sharespace.serve.served import Served, load_base

__all__ = [
    "Classify",
    "Embed",
    "Engine",
    "Generate",
    "Limits",
    "Piece",
    "Sampling",
    "Scores",
    "Served",
    "Vector",
    "load_base",
    "make_app",
]
