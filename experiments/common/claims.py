"""What the paper claims beside what was measured here, for the page of all results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from experiments.common.runs import write


@dataclass(frozen=True)
class Claim:
    """One claim; what was measured is computed from results files, never typed in."""

    claim: str
    """In plain words, with the place in the paper."""
    paper: str
    """The paper's figure."""
    here: str
    """The figure measured here, with the number of seeds."""
    holds: Literal["yes", "partly", "no", "not tested"]
    note: str = ""
    """What differs from the paper's setting, where it matters."""


def write_claims(file: Path, claims: Sequence[Claim], command: str) -> None:
    """Write ``claims.json`` of an experiment.

    Args:
        file: where to.
        claims: at least one.
        command: makes the file again from the results files.
    """
    write(file, {"command": command, "claims": [asdict(claim) for claim in claims]})
