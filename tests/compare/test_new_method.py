"""A method from outside the package runs beside those that it has."""

from __future__ import annotations

import pytest

from compare.streams import jobs, settings
from sharespace.compare import (
    Outcome,
    StoredBytes,
    Workbench,
    all_methods,
    compared,
    compared_method,
    method,
    run,
)
from sharespace.errors import OptionError
from sharespace.stream.measures import ScoreMatrix


@pytest.fixture
def untrained_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered method that is gone again after the test."""
    monkeypatch.setattr(compared, "_METHODS", dict(all_methods()))

    @compared_method("untrained", paper="https://example.org/untrained", uses_old_data=True)
    def untrained(bench: Workbench) -> Outcome:
        """Every task's head as it came."""
        scores = {name: bench.score(name, bench.fresh(name)) for name in bench.tasks}
        return bench.outcome(
            ScoreMatrix.of_one_step(scores), dict.fromkeys(scores, 0), [], StoredBytes()
        )


@pytest.mark.usefixtures("untrained_method")
def test_a_method_from_outside_runs_beside_another() -> None:
    found = run(jobs(2), settings(), ["untrained", "head_only"])
    assert list(found) == ["untrained", "head_only"]
    untrained, trained = found.values()
    assert (untrained.method, untrained.uses_old_data) == ("untrained", True)
    assert (untrained.steps, trained.steps) == (0, 80)
    assert untrained.stored == trained.stored
    assert sum(untrained.matrix.last.values()) < sum(trained.matrix.last.values())
    assert method("untrained").paper == "https://example.org/untrained"
    assert method("untrained").description == "Every task's head as it came."


@pytest.mark.usefixtures("untrained_method")
def test_a_name_is_given_once() -> None:
    with pytest.raises(OptionError, match="registered already"):
        compared_method("head_only")(method("untrained").learn)


def test_every_method_of_the_package_says_what_it_does() -> None:
    for known in all_methods().values():
        assert known.description, known.name
        assert known.paper is None or known.paper.startswith("https://arxiv.org/abs/"), known.name
