"""Step 1: what a build takes, keeps and refuses."""

from __future__ import annotations

import pytest
import torch

from builders import (
    FULL,
    MODULE,
    absolute_errors,
    adapter,
    build,
    relatives,
    stored_dense,
    strangers,
    update,
    worst,
)
from sharespace.errors import CorruptAdapterError, OptionError, TaskExistsError
from sharespace.linalg.dimension import Dimension
from sharespace.subspace.adapter import LEARNED, BaseModel, LayerUpdate
from sharespace.subspace.build import initialise


def test_no_adapter_and_two_of_one_name_are_refused() -> None:
    with pytest.raises(OptionError, match="none"):
        build([], 2)
    one = adapter("a", update(6, 4, 2))
    with pytest.raises(TaskExistsError, match="'a'"):
        build([one, one], 2)
    for name in ("", "a/b", "x" * 300):
        with pytest.raises(OptionError, match="name"):
            build([one.with_name(name)], 2)


@pytest.mark.parametrize("factor", ["up", "down"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_adapter_is_refused_by_name(factor: str, bad: float) -> None:
    found = update(6, 4, 2)
    getattr(found, factor)[0, 0] = bad
    with pytest.raises(CorruptAdapterError, match=r"'sick', module 'm'.*NaN or infinity"):
        build([adapter("well", update(6, 4, 2)), adapter("sick", found)], 2)


def test_a_large_but_finite_adapter_is_taken() -> None:
    """The sum of its factor overflows; its numbers do not."""
    found = LayerUpdate(torch.full((4, 2), 6e4).half(), torch.eye(2, 3).half() * 0.01)
    assert not bool(torch.isfinite(found.up.sum()))
    assert worst(build([adapter("a", found)], FULL), [adapter("a", found)]) < 3e-3


def test_a_task_that_lacks_a_module_is_left_out_of_it() -> None:
    """Not a zero task: no entry, no weight, nothing in the ledger."""
    both = adapter("both", {"x": update(6, 4, 2), "y": update(5, 3, 1)})
    one = adapter("one", {"x": update(6, 4, 2, 7)})
    model = build([both, one], FULL)
    assert set(model.tasks["one"].coefficients) == {"x"}
    assert model.tasks["one"].ledger.modules == ("x",)
    alone = build([both], FULL)
    assert torch.equal(stored_dense(model, "both", "y"), stored_dense(alone, "both", "y"))


def test_tasks_with_disjoint_modules_live_side_by_side() -> None:
    base = BaseModel("acme/base")
    adapters = [adapter(f"t{i}", {f"m{i}": update(6, 4, 2, i)}, base=base) for i in range(3)]
    model = build(adapters, 2)
    assert list(model.layers) == ["m0", "m1", "m2"]
    assert worst(model, adapters) < 1e-5


def test_an_adapter_without_modules_keeps_its_head() -> None:
    none: dict[str, LayerUpdate] = {}
    head = adapter("head", none, kept={"classifier.weight": torch.ones(2)})
    model = build([head, adapter("a", update(6, 4, 2))], 2)
    assert torch.equal(model.tasks["head"].kept["classifier.weight"], torch.ones(2))
    assert model.tasks["head"].ledger.bound == 0


def test_k_may_be_larger_than_everything_and_of_any_side() -> None:
    adapters = strangers(2, 1, 9, 3)
    assert build(adapters, FULL).layers[MODULE].k == (1, 2)
    assert build(adapters, (1, 1)).layers[MODULE].k == (1, 1)


def test_each_layer_has_its_own_k() -> None:
    updates = {"wide": update(20, 20, 6, norm=1.0), "thin": update(20, 20, 1)}
    model = build([adapter("a", updates)], variance=0.999)
    assert model.layers["thin"].k == (1, 1)
    assert model.layers["wide"].k[0] > 3


def test_the_stored_dtype_follows_the_adapters_or_the_wish() -> None:
    half = [adapter(f"t{i}", update(6, 4, 2, i, dtype=torch.float16)) for i in range(2)]
    mixed = [*half, adapter("b", update(6, 4, 2, dtype=torch.bfloat16))]
    assert build(half, 2).dtype == torch.float16
    assert build(mixed, 2).dtype == torch.float32
    model = build(mixed, 2, dtype=torch.bfloat16)
    assert model.layers[MODULE].left_basis.dtype == torch.bfloat16
    tensors = model.tasks["b"].coefficients[MODULE].tensors
    assert {t.dtype for t in tensors} == {torch.bfloat16}


def test_what_came_with_an_adapter_stays_with_its_task() -> None:
    kept = {"head": torch.randn(3)}
    found = adapter("a", update(6, 4, 2), kept=kept, config={"lora_alpha": 16})
    task = build([found], 2).tasks["a"]
    assert torch.equal(task.kept["head"], kept["head"])
    assert task.config == {"lora_alpha": 16, "base_model_name_or_path": None}
    assert (task.provenance, task.adapter_bytes) == (LEARNED, found.nbytes)


def test_the_caller_may_name_the_base() -> None:
    found = adapter("a", update(6, 4, 2), base=BaseModel("org/one"))
    model = initialise([found], Dimension(k=2), base=BaseModel("org/other"))
    assert model.base.id == "org/other"


def test_progress_is_told_after_every_module() -> None:
    told: list[tuple[str, int, int]] = []
    adapters = [adapter("a", {"x": update(6, 4, 2), "y": update(5, 3, 1)})]
    initialise(adapters, Dimension(k=2), progress=lambda *args: told.append(args))
    assert told == [("x", 1, 2), ("y", 2, 2)]


def test_two_hundred_tasks() -> None:
    adapters = relatives(200, 12, 10, k=5, rank=2)
    model = build(adapters, 5)
    assert len(model.tasks) == 200
    assert worst(model, adapters) < 1e-5
    cut = build(adapters, 3)
    assert all(e[MODULE] > 0 for e in absolute_errors(cut, adapters).values())


@pytest.mark.parametrize("options", [{"error": 0.1}, {"budget": 500}, {"budget": 10**6}])
def test_method_share_has_no_rule_for_an_error_or_a_budget(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="method 'share'"):
        build(strangers(2), method="share", **options)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_bits() -> None:
    one, two = (build(strangers(4), 3, seed=5) for _ in range(2))
    assert torch.equal(one.layers[MODULE].left_basis, two.layers[MODULE].left_basis)
