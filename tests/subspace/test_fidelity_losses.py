"""A step that takes much from a task warns of it, and refuses where it is told to."""

from __future__ import annotations

import pytest

from builders import adapter, relatives, strangers, update
from sharespace import Share
from sharespace.errors import LossWarning, OptionError
from sharespace.subspace.fidelity import losses


def family() -> Share:
    """Ten tasks of one subspace, at the cap."""
    return Share.from_adapters(relatives(10, k=4), k=4)


def stranger() -> list:  # type: ignore[type-arg]
    return [adapter("new", update(12, 9, 3, seed=77))]


def test_a_newcomer_erased_at_the_cap_is_warned_of() -> None:
    share = family()
    with pytest.warns(LossWarning, match=r"new \d"):
        after = share.merge(stranger())
    lost = losses(share.model, after.model)
    assert lost[0].task == "new"
    assert lost[0].bound > 0.5


def test_a_build_in_too_few_directions_is_warned_of() -> None:
    with pytest.warns(LossWarning, match="The error is up to t"):
        Share.from_adapters(strangers(5), k=2)


def test_a_union_at_the_cap_is_warned_of() -> None:
    with pytest.warns(LossWarning, match="new"):
        family().union(Share.from_adapters(stranger(), k=4))


def test_what_would_lose_too_much_is_refused() -> None:
    share = family()
    with pytest.raises(OptionError, match=r"max error 20 %: the error would be up to new .*--cap"):
        share.merge(stranger(), max_error=0.2)
    with pytest.raises(OptionError, match="max_error"):
        share.merge(stranger(), max_error=-1.0)
    assert share.merge(stranger(), max_error=0.2, cap=9).fidelity().max_relative_error < 1e-5


def test_old_tasks_count_too() -> None:
    share = Share.from_adapters(strangers(1), k=3)
    crowd = relatives(20, k=3, seed=5)
    with pytest.raises(OptionError, match="be up to old"):
        share.rename("t0", "old").merge(crowd, max_error=0.3)


def test_a_task_that_lost_much_before_does_not_refuse_what_takes_nothing() -> None:
    share = Share.from_adapters(strangers(5), k=2)
    assert share.fidelity().max_relative_error > 0.3
    assert "new" in share.merge(stranger(), cap=12, max_error=0.01).tasks
