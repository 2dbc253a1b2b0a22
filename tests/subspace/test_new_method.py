"""A basis method from outside of the package: one class under one decorator, through ``Share``."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import adapter, relative_errors, update
from sharespace import Share
from sharespace.errors import OptionError
from sharespace.linalg.joint import hosvd
from sharespace.linalg.problem import BasisPair
from sharespace.subspace.adapter import Adapter
from sharespace.subspace.basis_method import BasisMethod, LayerTasks
from sharespace.subspace.basis_methods import basis_method, method_names, register
from subspace.copied import Copied


@register("hosvd", paper="https://doi.org/10.1137/S0895479896305696")
class TruncatedHosvd(BasisMethod):
    """The higher-order SVD without sweeps: each side's leading directions alone."""

    def bases(self, tasks: LayerTasks, k: tuple[int, int]) -> BasisPair:
        return hosvd(tasks.problem, k)


def lora(name: str, seed: int) -> Adapter:
    return adapter(name, update(16, 12, 2, seed))


FIRST, NEW = [lora("a", 1), lora("b", 2)], [lora("c", 3)]


def test_it_builds_saves_loads_merges_and_exports(tmp_path: Path) -> None:
    Share.from_adapters(FIRST, k=4, method="hosvd").save(tmp_path / "s")
    loaded = Share.load(tmp_path / "s")
    assert loaded.model.settings.method == "hosvd"
    assert loaded.fidelity(FIRST).max_relative_error < 1e-5
    merged = loaded.merge(NEW)
    assert merged.save() == 2
    assert Share.load(tmp_path / "s").tasks == ("a", "b", "c")
    assert all(layer.k == (4, 4) for layer in merged.model.layers.values())
    merged.export("c", tmp_path / "c")
    exported = relative_errors(Share.from_adapters({"c": tmp_path / "c"}, k=4).model, NEW)
    bound = merged.fidelity(NEW).tasks["c"].bound
    assert 0 < exported["c"] <= bound * (1 + 1e-5)


def test_its_bases_are_used_and_its_ledger_is_the_error() -> None:
    share = Share.from_adapters(FIRST, k=2, method="hosvd")
    errors = relative_errors(share.model, FIRST)
    best = relative_errors(Share.from_adapters(FIRST, k=2).model, FIRST)
    assert sum(e**2 for e in best.values()) < sum(e**2 for e in errors.values())
    for name, error in errors.items():
        assert share.task(name).ledger.bound == pytest.approx(error, rel=1e-4)


def test_it_is_built_out_of_core_and_in_other_processes() -> None:
    for options in ({"memory": 1}, {"executor": Copied()}):
        share = Share.from_adapters(FIRST, k=4, method="hosvd", **options)
        assert share.fidelity(FIRST).max_relative_error < 1e-5


@pytest.mark.parametrize("rule", [{}, {"variance": 0.9}, {"error": 0.1}, {"budget": 10_000}])
def test_a_rule_that_it_does_not_have_is_refused(rule: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="'hosvd': it has no rule"):
        Share.from_adapters(FIRST, method="hosvd", **rule)  # type: ignore[arg-type]


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(OptionError, match="cannot centre"):
        Share.from_adapters(FIRST, k=2, method="hosvd", centred=True)


def test_names_are_known_and_kept_apart() -> None:
    assert set(method_names()) >= {"joint", "share", "hosvd"}
    assert basis_method("hosvd").paper.startswith("https://")
    with pytest.raises(OptionError, match="has that name"):

        @register("joint", paper="")
        class Other(TruncatedHosvd):
            pass

    with pytest.raises(OptionError, match="'hosvd'"):
        basis_method("tucker")


def test_the_same_class_may_be_registered_again() -> None:
    register("hosvd", paper=TruncatedHosvd.paper)(TruncatedHosvd)
    assert isinstance(basis_method("hosvd"), TruncatedHosvd)
