"""Stages of the experiments as from the command line, in the process of the tests."""

from __future__ import annotations

from experiments.__main__ import main


def call(stage: str, experiment: str, *options: object) -> None:
    """``python -m experiments STAGE EXPERIMENT OPTIONS``."""
    main([stage, experiment, *map(str, options)])
