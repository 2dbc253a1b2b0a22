"""One stream through a Share model, whose later tasks come as adapters, as data, or as both."""

from __future__ import annotations

import pytest

from compare.conftest import Everything
from compare.streams import jobs, settings
from sharespace.compare import Workbench, run_share_stream
from sharespace.errors import OptionError
from sharespace.stream.loop import Arrival, StreamLoop


@pytest.mark.parametrize("arrival", ["adapter", "data", "both"])
def test_a_task_may_come_in_any_way(everything: Everything, arrival: Arrival) -> None:
    bench = Workbench(jobs(), settings(), everything.bench.own)
    stream = run_share_stream(bench, dict.fromkeys(bench.tasks, arrival))
    assert stream.matrix.steps == ("task0+task1", "task2")
    assert stream.share.tasks == bench.tasks
    assert [share.tasks for share in stream.history] == [bench.tasks[:2], bench.tasks]
    assert [number > 0 for number in stream.trained.values()] == [
        False,
        False,
        arrival != "adapter",
    ]
    assert set(stream.own) == set(bench.tasks[: 2 if arrival == "data" else 3])
    if arrival == "data":
        assert stream.matrix == everything.outcomes["share_strict"].matrix


@pytest.mark.parametrize("initial", [0, 4])
def test_the_first_subspace_is_made_of_tasks_of_the_stream(
    everything: Everything, initial: int
) -> None:
    share = everything.outcomes["share_strict"].history[0]
    loop = StreamLoop(lambda _: share, lambda *_: pytest.fail("learned"), lambda *_: None)
    with pytest.raises(OptionError, match="there are 3 tasks"):
        next(loop.run(["a", "b", "c"], initial))
