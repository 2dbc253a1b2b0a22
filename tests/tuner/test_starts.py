"""A new task that starts from known ones: their updates are an exact part of it, however stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from builders import dense
from learn.nets import Points, adapter, net
from sharespace import Share, ShareConfig, collect
from sharespace.cli.json_records import info_record
from sharespace.errors import CorruptAdapterError, MismatchError, OptionError, TaskNotFoundError
from sharespace.gather import gather
from sharespace.learn import Setup, TrainingSettings, contribute, fit, merge_from
from sharespace.report import write_report
from sharespace.store import checkout, coefficient_files, known_starts
from sharespace.subspace.adapter import Adapter, BaseModel, LayerUpdate
from sharespace.subspace.coefficients import Coefficients, Core, Factors, PerTask
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import BuildSettings, Ledger, ShareModel, Task, reconstruct
from sharespace.tuner import publish
from sharespace.tuner.collect import layers_of
from tuner.spaces import published, randomise, space, update_of

GROUPS = ((2, 2), (2, 2))
KINDS = ("factors", "core", "first group", "second group", "per task", "elsewhere")
"""Ways in which a known task is stored at the module ``first``; the last does not adapt it."""


def stored(kind: str, shape: tuple[int, int], generator: torch.Generator) -> Coefficients | None:
    def draw(*sizes: int) -> Tensor:
        return 0.5 * torch.randn(*sizes, generator=generator)

    if kind == "elsewhere":
        return None
    if kind == "core":
        return Core(draw(4, 4))
    if kind == "per task":
        return PerTask(draw(shape[0], 3), draw(shape[1], 3))
    value = Factors(draw(4, 2), draw(4, 2))
    if kind == "factors":
        return value
    offset = (0, 0) if kind == "first group" else (2, 2)
    return Factors(value.left[:2], value.right[:2]).placed(offset, (4, 4))


def known_share(*, groups: bool) -> ShareModel:
    """Tasks of every kind of storage in two modules; those of groups only where there are any."""
    plain = space(net())
    layers = {
        m: replace(plain.layers[m], groups=GROUPS if groups else ()) for m in ("first", "second")
    }
    generator = torch.Generator().manual_seed(5)
    tasks = []
    for kind in KINDS:
        if "group" in kind and not groups:
            continue
        values = {
            m: stored(kind if m == "first" else "factors", shape_of(layer), generator)
            for m, layer in layers.items()
        }
        coefficients = {m: value for m, value in values.items() if value is not None}
        norms = [float(dense(c.as_update(layers[m])).norm()) for m, c in coefficients.items()]
        ledger = Ledger(
            tuple(coefficients),
            torch.tensor(norms, dtype=torch.float64),
            torch.zeros(len(norms), 0, dtype=torch.float64),
            (),
        )
        tasks.append(Task(kind, coefficients, ledger))
    model = ShareModel(BaseModel(), BuildSettings(), torch.float32, layers, {})
    return model.with_tasks(tasks)


def shape_of(layer: LayerSubspace) -> tuple[int, int]:
    return layer.shape.out_features, layer.shape.in_features


SPACES = {groups: known_share(groups=groups) for groups in (False, True)}
NAMES = {groups: publish(model) for groups, model in SPACES.items()}

SINGLE = [{"start": kind} for kind in (*KINDS, "mean")]
MIXTURES = [
    {"start": "core", "known": ["core", "per task"]},
    {"start": "zero", "known": ["per task", "elsewhere", "factors"]},
    {"start": "second group", "known": ["first group", "second group", "per task", "core"]},
    {"start": "mean", "known": list(KINDS)},
]


def adapted(groups: bool, form: Any, options: dict[str, Any], **more: Any) -> PeftModel:
    config = ShareConfig(share=NAMES[groups], task="new", form=form, p=3, phi=1, **options, **more)
    return get_peft_model(net(), config)


def weights_of(model: PeftModel, options: dict[str, Any]) -> dict[str, float]:
    """Known task -> a_j at the module ``first``."""
    start, known = options["start"], options.get("known")
    if known:
        layer = layers_of(model, "default")["first"]
        return dict(zip(known, layer.sharespace_known_weights["default"].tolist(), strict=True))
    if start == "mean":
        return dict.fromkeys(KINDS, 1 / len(KINDS))
    return {start: 1.0}


def expected(model: PeftModel, weights: dict[str, float], groups: bool) -> Tensor:
    """dW of the module ``first`` by the formula, float64."""
    total = update_of(layers_of(model, "default")["first"])
    for name, weight in weights.items():
        known = reconstruct(SPACES[groups], name)
        total = total + (weight * dense(known["first"]) if "first" in known else 0)
    return total


@pytest.mark.parametrize("form", ["core", "factors"])
@pytest.mark.parametrize("options", [*SINGLE, *MIXTURES], ids=str)
def test_forward_and_collect_are_the_formula(form: str, options: dict[str, Any]) -> None:
    model = adapted(True, form, options)
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "known" in n}
    assert bool(trained) == bool(options.get("known"))
    assert all(name.endswith("known_weights.default") for name in trained)
    x = Points().x[:6]
    for _ in range(2):  # As it starts, then with everything that is trained at random.
        weights = weights_of(model, options)
        dW = expected(model, weights, True)
        layer = layers_of(model, "default")["first"]
        for training in (False, True):
            out = layer.train(training)(x)
            wanted = layer.base_layer(x).double() + x.double() @ dW.mT
            torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)
        collected = dense(collect(model, "new").layer("first"))
        torch.testing.assert_close(collected, dW, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.get_delta_weight("default").double(), dW, **CLOSE)
        randomise(model)


CLOSE: Any = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("options", [*SINGLE[:2], SINGLE[4], SINGLE[5], *MIXTURES[:2]], ids=str)
def test_merging_changes_no_known_task_and_adds_no_column_for_the_start(
    options: dict[str, Any],
) -> None:
    before = SPACES[False]
    for phi in (0, 1):
        config = ShareConfig(share=NAMES[False], task="new", form="core", p=3, phi=phi, **options)
        model = get_peft_model(net(), config)
        randomise(model)
        merged = merge_from(Share(before), model)
        for module, layer in before.layers.items():
            outside = layers_of(model, "default")[module].sharespace_known_left_outside
            columns = phi + (outside["default"].shape[1] if "default" in outside else 0)
            assert merged.model.layers[module].k == (4 + columns, 4 + columns)
            grown = merged.model.layers[module]
            assert torch.equal(grown.left_basis[:, :4], layer.left_basis)
            new = merged.task("new").coefficients[module].as_update(grown)
            wanted = dense(collect(model, "new").layer(module))
            torch.testing.assert_close(dense(new), wanted, **CLOSE)
        for name, task in before.tasks.items():
            for module, value in task.coefficients.items():
                kept = merged.task(name).coefficients[module]
                assert torch.equal(
                    dense(kept.as_update(merged.model.layers[module])),
                    dense(value.as_update(before.layers[module])),
                )


def test_a_merged_task_says_what_it_started_from() -> None:
    files = coefficient_files(SPACES[False], SPACES[False].tasks)
    model = adapted(False, "core", {"start": "core"})
    merged = merge_from(Share(SPACES[False]), model)
    assert dict(merged.task("new").started_from) == {files["core"]: 1.0}
    mixed = adapted(False, "core", {"start": "core", "known": ["factors", "core"]})
    for layer in layers_of(mixed, "default").values():
        layer.sharespace_known_weights["default"].data += torch.tensor([0.5, 0.25])
    task = merge_from(Share(SPACES[False]), mixed).task("new")
    assert dict(task.started_from) == pytest.approx({files["factors"]: 0.5, files["core"]: 1.25})
    assert not collect(adapted(False, "core", {"start": "zero"}), "new").started_from


@pytest.mark.parametrize("save_basis", [False, True])
@pytest.mark.parametrize("options", [SINGLE[4], *MIXTURES[2:]], ids=str)
def test_a_saved_task_is_loaded_bit_for_bit(
    options: dict[str, Any], save_basis: bool, tmp_path: Path
) -> None:
    model = adapted(True, "core", options, save_basis=save_basis)
    randomise(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(net(), str(tmp_path))
    x = Points().x
    assert torch.equal(again.eval()(x=x)["logits"], model.eval()(x=x)["logits"])
    assert collect(again, "new").started_from == collect(model, "new").started_from


def test_a_file_is_refused_by_an_adapter_that_starts_from_something_else(tmp_path: Path) -> None:
    adapted(True, "core", {"start": "core"}).save_pretrained(tmp_path)
    for options in ({"start": "zero"}, {"start": "elsewhere"}):
        model = adapted(True, "core", options)
        with pytest.raises(MismatchError, match="other known tasks"):
            model.load_adapter(str(tmp_path), "default")


@pytest.mark.parametrize("options", [SINGLE[0], MIXTURES[0]], ids=str)
def test_a_training_goes_on_from_a_checkpoint_exactly(
    options: dict[str, Any], tmp_path: Path
) -> None:
    def trained(steps: int, folder: Path, resume: Path | None = None) -> PeftModel:
        model = adapted(False, "core", options)
        arguments = {"output_dir": str(folder), "save_strategy": "steps", "save_steps": 3}
        training = TrainingSettings(
            max_steps=steps,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            per_device_train_batch_size=8,
            use_cpu=True,
            arguments=arguments,
        )
        fit(model, Points(), training, Setup(resume=resume))
        return model

    whole = trained(6, tmp_path / "whole")
    trained(3, tmp_path / "part")
    again = trained(6, tmp_path / "again", tmp_path / "part" / "checkpoint-3")
    state, resumed = whole.state_dict(), again.state_dict()
    assert all(torch.equal(state[key], resumed[key]) for key in state)
    before = adapted(False, "core", options).state_dict()
    moved = {key for key in state if not torch.equal(state[key], before[key])}
    kinds = (
        ("sharespace_core.", "sharespace_known_weights.")
        if "known" in options
        else ("sharespace_core.",)
    )
    assert moved
    assert all(any(kind in key for kind in kinds) for key in moved)


@pytest.mark.parametrize("options", [SINGLE[4], MIXTURES[0]], ids=str)
def test_it_is_handed_in_as_it_is_merged(options: dict[str, Any], tmp_path: Path) -> None:
    share = Share(SPACES[False])
    share.save(tmp_path / "s.share")
    config = ShareConfig(share=str(tmp_path / "s.share"), task="new", p=3, phi=1, **options)
    model = get_peft_model(net(), config)
    randomise(model)
    contribute(model, tmp_path / "inbox")
    gather(tmp_path / "s.share", tmp_path / "inbox")
    gathered = Share.load(tmp_path / "s.share").updates("new")
    for module, update in gathered.items():
        wanted = dense(collect(model, "new").layer(module))
        torch.testing.assert_close(dense(update), wanted, **CLOSE)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown start": ({"start": "nothing"}, TaskNotFoundError, "nothing"),
    "unknown in the mixture": ({"known": ["core", "nothing"]}, TaskNotFoundError, "nothing"),
    "start outside": ({"start": "factors", "known": ["core"]}, OptionError, "not among them"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_start_that_cannot_be_is_refused(case: str) -> None:
    options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        adapted(True, "core", {"start": "zero", **options})
    known = published(net(), tasks=["a"])
    for options in ({"start": "a"}, {"known": ["a"]}):
        with pytest.raises(OptionError, match="knows task 'a'"):
            get_peft_model(net(), ShareConfig(share=known, task="a", **options))


def at_the_cap(learned: float, options: dict[str, Any]) -> tuple[Share, PeftModel]:
    """A Share model that is full, and a task that learned a part outside of it: |dW - start| is
    that many times |start| in every module."""
    share = Share.from_adapters([adapter(n, i, scale=0.1) for i, n in enumerate("ab")], k=4)
    ALIVE.append(share.model)
    config = ShareConfig(share=publish(share.model), task="new", p=3, phi=3, **options)
    model = get_peft_model(net(), config)
    randomise(model)
    if "known" in options:
        for layer in layers_of(model, "default").values():
            layer.sharespace_known_weights["default"].data.copy_(torch.tensor([1.0, 0.0]))
    resize(model, learned, share, "a")
    return share, model


def resize(model: PeftModel, learned: float, share: Share, start: str) -> None:
    """Make what is learned that many times as large as the start, in every module."""
    known = share.updates(start)
    for module, layer in layers_of(model, "default").items():
        size = learned * float(dense(known[module]).norm())
        layer.sharespace_core["default"].data *= size / float(update_of(layer).norm())


@pytest.mark.parametrize("learned", [1.0, 0.3, 0.1])
@pytest.mark.parametrize("options", [{"start": "a"}, {"start": "a", "known": ["a", "b"]}], ids=str)
def test_at_the_cap_the_newcomers_part_does_not_vanish_behind_a_good_error(
    learned: float, options: dict[str, Any]
) -> None:
    share, model = at_the_cap(learned, options)
    merged = merge_from(share, model)
    task = merged.task("new")
    known = share.updates("a")
    kept = 0.0
    for module, layer in layers_of(model, "default").items():
        assert merged.model.layers[module].k == (4, 4)
        new, start = update_of(layer), dense(known[module])
        assert task.ledger.norm(module) == pytest.approx(float(new.norm()), rel=1e-4)
        stored = dense(task.coefficients[module].as_update(merged.model.layers[module]))
        lost = float((stored - start - new).norm())
        index = task.ledger.modules.index(module)
        # The ledger says what is lost, relative to what was learned.
        assert lost <= float(task.ledger.bounds[index]) * (1 + 1e-6)
        assert lost >= 0.9 * float(task.ledger.bounds[index])
        kept += 1 - lost / float(new.norm())
    assert kept / 2 > 0.3, "a part of what was learned must be there"
    others = [merged.task(name).ledger.bound for name in "ab"]
    assert max(others) < 1


def test_a_part_of_the_cap_is_reserved_for_a_newcomer_among_many() -> None:
    """Forty tasks of one family fill the cap: each of its directions is worth more to them than
    any of the newcomer's, and without a reserve all of what it learned would be lost."""
    family = adapter("t0", 5, rank=4)
    draw = torch.Generator().manual_seed(1)
    tasks = [
        Adapter.from_updates(
            f"t{i}",
            {
                m: LayerUpdate(
                    family.layer(m).up @ torch.randn(4, 4, generator=draw), family.layer(m).down
                )
                for m in family.shapes
            },
        )
        for i in range(40)
    ]
    share = Share.from_adapters(tasks, k=4)
    ALIVE.append(share.model)
    config = ShareConfig(share=publish(share.model), task="new", p=2, phi=2, start="t0")
    model = get_peft_model(net(), config)
    randomise(model)
    resize(model, 0.3, share, "t0")
    learned = collect(model, "new")
    merged = share.merge(learned).task("new")
    assert merged.ledger.bound < 0.95
    unreserved = share.merge(replace(learned, entry_norms={})).task("new")
    total = merged.ledger.total_norm
    assert float(unreserved.ledger.bounds.norm()) > 0.97 * total
    assert unreserved.ledger.bound < merged.ledger.bound, "the error that would have looked good"


def test_what_was_hardly_anything_does_not_outweigh_the_others() -> None:
    share, model = at_the_cap(1e-4, {"start": "a"})
    norms = collect(model, "new").entry_norms
    for module, update in share.updates("a").items():
        assert norms[module] == pytest.approx(0.05 * float(dense(update).norm()), rel=1e-3)
    merged = merge_from(share, model)
    assert merged.task("b").ledger.bound < 1


def test_a_training_that_diverged_is_refused_by_name() -> None:
    share, model = at_the_cap(0.3, {"start": "a"})
    layers_of(model, "default")["first"].sharespace_core["default"].data[0, 0] = torch.nan
    with pytest.raises(CorruptAdapterError, match=r"'new'.*NaN"):
        merge_from(share, model)


def test_a_weight_that_moved_is_something_learned() -> None:
    share = Share(SPACES[False])
    model = adapted(False, "core", {"start": "core", "known": ["core", "factors"]})
    for layer in layers_of(model, "default").values():
        layer.sharespace_known_weights["default"].data += torch.tensor([0.0, 0.5])
    moved = share.updates("factors")
    for module, norm in collect(model, "new").entry_norms.items():
        assert norm == pytest.approx(0.5 * float(dense(moved[module]).norm()), rel=1e-4)


def test_info_and_report_say_where_a_task_came_from(tmp_path: Path) -> None:
    share, model = at_the_cap(0.3, {"start": "a"})
    share.save(tmp_path / "s.share")
    merge_from(Share.load(tmp_path / "s.share"), model).save()
    opened = checkout(tmp_path / "s.share")
    # The merge moved the coefficients of "a"; those that were started from are of version 1.
    assert known_starts(opened) == {"new": {"a": 1.0}}
    said: Any = info_record(opened)["tasks"]
    assert (said["new"]["started_from"], said["a"]["started_from"]) == ({"a": 1.0}, {})
    assert 0 < said["new"]["bound_of_whole"] < 0.5 * said["new"]["bound"]
    write_report(tmp_path / "s.share", tmp_path / "page.html")
    assert "started from a" in (tmp_path / "page.html").read_text()
    file = "task-" + "0" * 64 + ".safetensors"
    task = replace(SPACES[False].tasks["core"], started_from={file: 1.0})
    Share(SPACES[False].with_tasks([task])).save(tmp_path / "other.share")
    assert known_starts(checkout(tmp_path / "other.share")) == {"core": {file: 1.0}}


ALIVE: list[ShareModel] = []
"""``publish`` keeps no model alive."""
