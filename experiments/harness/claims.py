"""What the paper claims beside what was measured here, for the page of all results.

Every figure is computed from results files, never typed in. The claims that several experiments
test are made here, each by one rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from experiments.harness.results import Results, write
from experiments.harness.tables import mean_of, numbers, of_method

HEAD, OWN, SHARE, JOINT = "head_only", "per_task_lora", "share_strict", "joint_lora"
Holds = Literal["yes", "partly", "no", "not tested"]


@dataclass(frozen=True)
class Claim:
    """One claim of the paper."""

    claim: str
    """In plain words, with the place in the paper."""
    paper: str
    """The paper's figure."""
    here: str
    """The figure measured here, with the number of runs."""
    holds: Holds
    note: str = ""
    """What differs from the paper's setting, where it matters."""


@dataclass(frozen=True)
class Said:
    """What the paper says, to be held against what was measured."""

    claim: str
    note: str = ""
    paper: str = "comparable"


def write_claims(file: Path, claims: Sequence[Claim | None], command: str) -> None:
    """Write ``claims.json`` of an experiment.

    Args:
        file: where to.
        claims: those that are None could not be tested.
        command: makes the file again from the results files.
    """
    tested = [asdict(claim) for claim in claims if claim is not None]
    write(file, {"command": command, "claims": tested})


def count(runs: Sequence[object]) -> str:
    """How many runs a figure is of."""
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs"


def having(runs: Sequence[Results], *methods: str) -> list[Results]:
    """Runs that have all these methods."""
    return [run for run in runs if all(method in run["methods"] for method in methods)]


def means(runs: Sequence[Results], *methods: str) -> list[float]:
    """Mean of each method over the tasks and the runs."""
    return [fmean(mean_of(run, method) for run in runs) for method in methods]


def near_lora(
    runs: Sequence[Results], said: Said, measure: str = "", without: str = "the head alone"
) -> Claim | None:
    """Strict Share against per-task LoRA.

    Args:
        runs: those that lack a method are left out.
        said: by the paper.
        measure: before the figures.
        without: what there is without LoRA.
    """
    runs = having(runs, HEAD, OWN, SHARE)
    if not runs:
        return None
    head, own, share = means(runs, HEAD, OWN, SHARE)
    # None where LoRA gains nothing, as in tests.
    gain = (share - head) / (own - head) if own > head else None
    part = "nothing" if gain is None else f"{gain:.0%}"
    holds: Holds = "no"
    if gain is not None and gain >= 0.5:
        holds = "yes" if gain >= 0.9 and share >= 0.98 * own else "partly"
    compared = f"{share:.1f} against {own:.1f}: {share / own if own else 0:.1%}"
    here = f"{measure}{compared}; of LoRA's gain over {without} ({head:.1f}) {part} ({count(runs)})"
    return Claim(said.claim, said.paper, here, holds, said.note)


def no_forgetting(runs: Sequence[Results], said: Said, limit: float = 1.0) -> Claim | None:
    """Points that strict Share forgets, at most ``limit`` in the worst run."""
    lost = numbers([row.forgetting for row in of_method(having(runs, HEAD, OWN), SHARE)])
    if not lost:
        return None
    here = f"{fmean(lost):.2f} points, worst run {max(lost):.2f} ({count(lost)})"
    holds: Holds = "yes" if max(lost) <= limit else "partly"
    return Claim(said.claim, said.paper, here, holds, said.note)


def as_joint(runs: Sequence[Results], said: Said) -> Claim | None:
    """Strict Share against one LoRA that is trained on all tasks at once."""
    runs = having(runs, HEAD, JOINT, SHARE)
    if not runs:
        return None
    head, joint, share = means(runs, HEAD, JOINT, SHARE)
    holds: Holds = "yes" if share >= joint - 0.3 else "no"
    if joint < head - 5:  # It collapsed at the rate of own LoRAs.
        holds = "not tested"
    here = f"{share:.1f} against {joint:.1f} for one joint LoRA ({count(runs)})"
    return Claim(said.claim, said.paper, here, holds, said.note)


def fewer_numbers(runs: Sequence[Results], said: Said) -> Claim | None:
    """Numbers trained for a task that is learned in the subspace, against a LoRA of rank 8."""
    ratios = []
    for run in having(runs, OWN, SHARE):
        own, share = (run["methods"][m]["trainable"][run["tasks"][-1]] for m in (OWN, SHARE))
        ratios.append(own / share)
    if not ratios:
        return None
    least, most = min(ratios), max(ratios)
    ratio = f"{least:.1f} to {most:.1f}x" if most - least >= 0.05 else f"{most:.1f}x"
    holds: Holds = "yes" if least >= 100 else "partly" if most >= 20 else "no"
    return Claim(said.claim, said.paper, f"{ratio} (against LoRA of rank 8)", holds, said.note)
