"""A task back as plain low-rank updates, exactly as stored."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from builders import (
    DTYPES,
    Family,
    adapter,
    build,
    dense,
    families,
    law,
    stored_dense,
    strangers,
    update,
)
from sharespace.errors import TaskNotFoundError
from sharespace.subspace.state import as_adapter, reconstruct


@law()
@given(
    family=families(dtypes=DTYPES),
    k=st.sampled_from([1, 3, 50]),
    budget=st.sampled_from([None, 800]),
)
def test_a_reconstruction_is_what_is_stored(family: Family, k: int, budget: int | None) -> None:
    rule = {"k": k} if budget is None else {"budget": budget}
    model = build(family.adapters, **rule)  # type: ignore[arg-type]
    for name in model.tasks:
        wanted = stored_dense(model, name)
        # Numbers beyond float16 are refused when a model is saved (tests/store).
        assume(bool(wanted.isfinite().all()))
        (found,) = reconstruct(model, name).values()
        assert found.up.dtype in (torch.float32, torch.float64)
        assert found.scaling == 1.0
        scale = float(found.up.double().norm() * found.down.double().norm())
        assert float((dense(found) - wanted).norm()) <= 1e-6 * scale


def test_a_task_as_an_adapter_carries_all_that_came_with_it() -> None:
    kept = {"head": torch.randn(3)}
    original = adapter(
        "a", update(8, 6, 2), kept=kept, config={"r": 2, "base_model_name_or_path": None}
    )
    model = build([original], 5)
    again = as_adapter(model, model.tasks["a"])
    assert (again.name, again.config, again.shapes) == ("a", original.config, original.shapes)
    assert again.kept["head"] is kept["head"]
    assert again.nbytes == original.nbytes
    for module, rank in again.ranks.items():
        assert again.layer(module).up.shape[1] == rank
    assert float((dense(again.layer("m")) - dense(original.layer("m"))).norm()) < 1e-6


def test_a_core_comes_back_with_the_rank_that_its_adapter_states() -> None:
    model = build([adapter("a", update(8, 6, 5))], (3, 2))
    again = as_adapter(model, model.tasks["a"])
    assert again.layer("m").up.shape == (8, again.ranks["m"])


def test_an_unknown_task_is_told_with_those_that_are_known() -> None:
    with pytest.raises(TaskNotFoundError, match=r"'nobody'.*'t0', 't1'"):
        reconstruct(build(strangers(2), 2), "nobody")
