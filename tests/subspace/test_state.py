"""Values: ledgers, names, bytes, fingerprints."""

from __future__ import annotations

import pytest
import torch

from builders import MODULE, adapter, build, strangers, update
from sharespace import Share
from sharespace.errors import OptionError, TaskExistsError, TaskNotFoundError
from sharespace.subspace.layer import Certificate
from sharespace.subspace.state import BuildSettings, Ledger, ShareModel


def _ledger() -> Ledger:
    norms = torch.tensor([3.0, 4.0], dtype=torch.float64)
    return Ledger(("x", "y"), norms, torch.zeros(2, 0, dtype=torch.float64), ())


def test_a_ledgers_bound_is_the_sum_and_not_the_root_of_squares() -> None:
    ledger = _ledger().with_event("init", {"x": 0.3}).with_event("merge", {"x": 0.4, "y": 0.8})
    assert ledger.events == ("init", "merge")
    assert ledger.bounds.tolist() == pytest.approx([0.7, 0.8])
    assert ledger.total_norm == 5.0
    assert ledger.bound == pytest.approx((0.7**2 + 0.8**2) ** 0.5 / 5)
    assert (ledger.norm("x"), ledger.norm("y")) == (3.0, 4.0)


def test_a_ledger_is_the_error_itself_while_one_event_truncated() -> None:
    once = _ledger().with_event("init", {"x": 0.3, "y": 0.1})
    assert _ledger().measured
    assert once.measured
    assert not once.with_event("merge", {"x": 0.2}).measured


def test_a_ledger_of_nothing_is_bounded_by_zero() -> None:
    nothing = torch.zeros(1, dtype=torch.float64)
    assert Ledger(("x",), nothing, nothing[:, None], ("init",)).bound == 0


def test_a_certificate_is_the_root_of_its_parts() -> None:
    assert Certificate(1.0, 2.0, 6.0).bound == 3.0


def _model() -> ShareModel:
    return build(strangers(3), 2)


def test_removing_leaves_the_others_bit_for_bit_and_the_order() -> None:
    model = _model()
    left = model.without_tasks("t1")
    assert list(left.tasks) == ["t0", "t2"]
    assert left.tasks["t2"] is model.tasks["t2"]
    assert left.layers[MODULE] is model.layers[MODULE]
    with pytest.raises(TaskNotFoundError, match="t9"):
        model.without_tasks("t0", "t9")


def test_renaming_keeps_the_place_and_refuses_taken_names() -> None:
    model = _model()
    assert list(model.with_renamed("t1", "new").tasks) == ["t0", "new", "t2"]
    assert model.with_renamed("t1", "new").task("new").name == "new"
    assert list(model.with_renamed("t1", "t1").tasks) == ["t0", "t1", "t2"]
    with pytest.raises(TaskExistsError):
        model.with_renamed("t1", "t0")
    for bad in (
        "",
        " ",
        " x",
        "x ",
        ".",
        "..",
        "a/b",
        "a\\b",
        "a\nb",
        "\x1b[31m",
        "\ud800",
        "x" * 201,
    ):
        with pytest.raises(OptionError, match="name"):
            model.with_renamed("t1", bad)
    for good in ("x" * 200, "日本語 🎉", "a.b", "NAME=x", "?#%"):
        assert good in model.with_renamed("t1", good).tasks
    with pytest.raises(TaskNotFoundError):
        model.with_renamed("t9", "x")


def test_a_model_is_a_value() -> None:
    model = _model()
    with pytest.raises(TypeError):
        model.tasks["t0"] = model.tasks["t1"]  # type: ignore[index]
    with pytest.raises(TypeError):
        model.tasks["t0"].coefficients[MODULE] = None  # type: ignore[index]


def test_the_fingerprint_is_of_modules_and_shapes_alone() -> None:
    x, y = update(6, 4, 1), update(5, 3, 2)
    one = build([adapter("a", {"x": x, "y": y})], 2)
    two = build([adapter("b", {"y": update(5, 3, 1), "x": update(6, 4, 2)})], 3)
    other = build([adapter("a", {"x": x, "z": y})], 2)
    assert one.fingerprint == two.fingerprint != other.fingerprint


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "a method that nobody knows": ({"method": "bogus"}, "method='bogus'"),
    "no pseudo-rank": ({"p": 0}, "p=0"),
    "a negative pseudo-rank": ({"p": -1}, "p=-1"),
    "half a pseudo-rank": ({"p": 1.5}, "p=1.5"),
    "a method that cannot centre": ({"centred": True}, "centred"),
}


@pytest.mark.parametrize(("options", "named"), REFUSED.values(), ids=REFUSED)
def test_an_option_is_refused_before_an_adapter_is_read(
    options: dict[str, object], named: str
) -> None:
    with pytest.raises(OptionError, match=named):
        Share.from_adapters(["no/such/adapter"], **options)  # type: ignore[arg-type]


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(OptionError, match="cap=0"):
        BuildSettings(cap=0)
