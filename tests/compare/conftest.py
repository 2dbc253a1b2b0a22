from __future__ import annotations

from dataclasses import dataclass

import pytest

from compare.streams import Points, jobs, settings
from sharespace.compare import Outcome, Workbench, all_methods


@dataclass(frozen=True, eq=False)
class Everything:
    """All methods, run one after the other on one workbench."""

    bench: Workbench
    outcomes: dict[str, Outcome]
    reads: dict[str, list[int]]
    """Method -> seeds of the tasks whose examples it read, in order."""


@pytest.fixture(scope="session")
def everything() -> Everything:
    bench = Workbench(jobs(), settings())
    outcomes, reads = {}, {}
    for name, run in all_methods().items():
        Points.reads.clear()
        outcomes[name] = run(bench)
        reads[name] = list(Points.reads)
    return Everything(bench, outcomes, reads)
