"""Adapters of a model: made, saved, loaded, several at once, merged, deleted."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from safetensors.torch import load_file, save_file

from sharespace import Share
from sharespace.errors import CorruptAdapterError, MismatchError, OptionError, TaskNotFoundError
from sharespace.subspace.coefficients import PerTask
from sharespace.subspace.state import ShareModel
from sharespace.tuner import ShareConfig, ShareTuner, collect, publish, register, release
from tuner.spaces import ALIVE, adapted, mlp, points, published, randomise, space, update_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
TARGETS = ["first", "second"]


def stored(folder: Path, *, seed: int = 0, **options: Any) -> str:
    """A Share model on disk."""
    Share(space(mlp(), seed=seed, **options)).save(folder)
    return str(folder)


def known(model: ShareModel) -> str:
    ALIVE.append(model)
    return publish(model)


# Registration


def test_registering_again_changes_nothing() -> None:
    before = (list(PeftType), dict(PEFT_TYPE_TO_CONFIG_MAPPING))
    register()
    register()
    assert (list(PeftType), dict(PEFT_TYPE_TO_CONFIG_MAPPING)) == before
    assert PeftType("SHARESPACE") is PeftType["SHARESPACE"] is ShareConfig(share="x").peft_type
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType("SHARESPACE")] is ShareConfig


def test_a_model_is_copied_and_unpickled_in_another_process(tmp_path: Path) -> None:
    model = adapted(mlp(), target_modules=TARGETS, phi=1)
    torch.testing.assert_close(copy.deepcopy(model)(points()), model(points()))
    torch.save({"model": model, "x": points(), "out": model(points())}, tmp_path / "m.pt")
    script = (
        "import sys, torch; sys.path.insert(0, sys.argv[2]); import sharespace.tuner;"
        "f = torch.load(sys.argv[1], weights_only=False);"
        "c = f['model'].peft_config['default'];"
        "from peft.utils import PeftType; assert c.peft_type is PeftType('SHARESPACE');"
        "assert torch.equal(f['model'](f['x']), f['out'])"
    )
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", script, str(tmp_path / "m.pt"), tests]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_that_transformers_matches_do_not_occur() -> None:
    """Keys are rewritten where they contain the prefix, and T5 has ``shared.weight``."""
    model = adapted(mlp(), target_modules=TARGETS, phi=1)
    assert not ShareTuner.uses_shared_state
    assert "shared" not in ShareTuner.prefix
    buffers = [name for name, _ in model.named_buffers()]
    assert buffers
    assert not any(ShareTuner.prefix in name for name in buffers)


# Bases


def test_bases_are_never_trained() -> None:
    model = adapted(mlp(), target_modules=TARGETS, phi=1)
    model.add_adapter("other", replace(model.peft_config["default"], seed=4))
    for names in ("other", "default", ["other", "default"]):
        model.base_model.set_adapter(names)
        model.base_model.set_requires_grad(names)
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        assert trained
        assert not any(n.endswith(("left_basis", "right_basis")) for n in trained)
        assert all(ShareTuner.prefix in n for n in trained)
    assert not any(b.requires_grad for _, b in model.named_buffers())
    before = {n: b.clone() for n, b in model.named_buffers()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(points()).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_all_modules_of_the_subspace_are_the_default() -> None:
    model = get_peft_model(mlp(), ShareConfig(share=published(mlp())))
    assert set(model.targeted_module_names) == {"first", "second", "head"}
    with_less = get_peft_model(mlp(), ShareConfig(share=published(mlp()), exclude_modules=["head"]))
    assert set(with_less.targeted_module_names) == set(TARGETS)


def test_a_new_task_starts_without_an_effect() -> None:
    for options in ({}, {"phi": 2}, {"form": "core", "phi": 1}):
        model = get_peft_model(mlp(), ShareConfig(share=published(mlp()), **options))
        torch.testing.assert_close(model(points()), mlp()(points()))


def test_a_new_task_starts_from_a_known_one_or_the_mean() -> None:
    share = space(mlp(), tasks=["a", "b"])
    found = {
        start: get_peft_model(
            mlp(), ShareConfig(share=known(share), start=start, target_modules=["first"])
        )
        .base_model.model.first.get_delta_weight("default")
        .detach()
        for start in ("a", "b", "mean")
    }
    torch.testing.assert_close(found["mean"], (found["a"] + found["b"]) / 2, rtol=1e-4, atol=1e-4)
    assert float(found["a"].norm()) > 0
    with pytest.raises(TaskNotFoundError, match="'nothing'"):
        get_peft_model(mlp(), ShareConfig(share=known(share), start="nothing"))


@pytest.mark.parametrize("options", [{}, {"phi": 2}, {"form": "core", "phi": 1}], ids=str)
def test_saved_and_loaded_is_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    share = stored(tmp_path / "s")
    model = adapted(mlp(), share=share, target_modules=TARGETS, **options, modules_to_save=["head"])
    randomise(model)
    model.save_pretrained(tmp_path / "a")
    saved = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert not any(key.endswith(("left_basis", "right_basis")) for key in saved)
    found = PeftModel.from_pretrained(mlp(), tmp_path / "a")
    torch.testing.assert_close(found(points()), model(points()))
    config = PeftConfig.from_pretrained(str(tmp_path / "a"))
    assert isinstance(config, ShareConfig)
    assert config.share_version == 1
    assert config.basis_id
    trained = PeftModel.from_pretrained(mlp(), tmp_path / "a", is_trainable=True)
    assert {n for n, p in trained.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_the_version_is_loaded_that_the_adapter_was_trained_in(tmp_path: Path) -> None:
    share = Share(space(mlp()))
    share.save(tmp_path / "s")
    model = adapted(mlp(), share=str(tmp_path / "s"), target_modules=TARGETS)
    model.save_pretrained(tmp_path / "a")
    newcomer = collect(adapted(mlp(), seed=3, phi=2, target_modules=TARGETS), "new")
    share.merge(newcomer).save(tmp_path / "s")
    fresh = get_peft_model(mlp(), ShareConfig(share=str(tmp_path / "s")))
    assert fresh.peft_config["default"].share_version == 2
    found = PeftModel.from_pretrained(mlp(), tmp_path / "a")
    torch.testing.assert_close(found(points()), model(points()))


def test_other_bases_than_the_coefficients_belong_to_are_refused(tmp_path: Path) -> None:
    """Random bases: nothing can make them again but the Share model."""
    model = adapted(mlp(), share=stored(tmp_path / "s", seed=1), target_modules=TARGETS)
    model.save_pretrained(tmp_path / "a")
    config = ShareConfig.from_pretrained(str(tmp_path / "a"))
    config.share, config.share_version = stored(tmp_path / "other", seed=2), None
    with pytest.raises(MismatchError, match="coefficients belong to"):
        PeftModel.from_pretrained(mlp(), tmp_path / "a", config=config)


def test_bases_that_are_gone_are_an_error_not_a_wrong_answer(tmp_path: Path) -> None:
    share = space(mlp(), seed=3)
    model = get_peft_model(mlp(), ShareConfig(share=publish(share), init_weights=False))
    model.save_pretrained(tmp_path / "a")
    config = ShareConfig.from_pretrained(str(tmp_path / "a"))
    del share
    with pytest.raises(MismatchError, match="gone"):
        PeftModel.from_pretrained(mlp(), tmp_path / "a")
    config.share = None
    with pytest.raises(OptionError, match="names no Share model"):
        PeftModel.from_pretrained(mlp(), tmp_path / "a", config=config)
    with pytest.raises(OptionError, match="empty"):
        get_peft_model(mlp(), ShareConfig(share=""))


@pytest.mark.parametrize("options", [{}, {"phi": 2}, {"form": "core", "phi": 1}], ids=str)
def test_save_basis_needs_no_share_model(tmp_path: Path, options: dict[str, Any]) -> None:
    share = space(mlp(), seed=5)
    config = ShareConfig(
        share=publish(share), save_basis=True, init_weights=False, target_modules=TARGETS, **options
    )
    model = get_peft_model(mlp(), config).eval()
    expected = model(points())
    model.save_pretrained(tmp_path / "a")
    del share
    found = PeftModel.from_pretrained(mlp(), tmp_path / "a")
    torch.testing.assert_close(found(points()), expected)
    found.save_pretrained(tmp_path / "b")
    again = PeftModel.from_pretrained(mlp(), tmp_path / "b")
    torch.testing.assert_close(again(points()), expected)


def test_a_file_without_the_bases_that_it_promises_is_refused(tmp_path: Path) -> None:
    model = adapted(mlp(), target_modules=TARGETS, save_basis=True)
    model.save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "basis" not in k}, path)
    with pytest.raises(MismatchError, match="carries its bases"):
        PeftModel.from_pretrained(mlp(), tmp_path / "a")
    config = ShareConfig.from_pretrained(str(tmp_path / "a"))
    config.layout = {"first": config.layout["first"]}
    with pytest.raises(CorruptAdapterError, match="second"):
        PeftModel.from_pretrained(mlp(), tmp_path / "a", config=config)


# Several adapters


def test_a_second_adapter_with_other_bases_is_refused_and_the_first_unchanged() -> None:
    model = adapted(mlp(), target_modules=TARGETS)
    before, names = model(points()), [n for n, _ in model.named_parameters()]
    other = ShareConfig(share=published(mlp(), seed=8), target_modules=TARGETS)
    with pytest.raises(MismatchError, match="other bases"):
        model.add_adapter("other", other)
    assert list(model.peft_config) == ["default"]
    assert [n for n, _ in model.named_parameters()] == names
    assert torch.equal(model(points()), before)


def test_loading_a_second_adapter_with_other_bases_is_refused(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        share = stored(tmp_path / f"share-{name}", seed=seed)
        adapted(mlp(), share=share, target_modules=TARGETS).save_pretrained(tmp_path / name)
    model = PeftModel.from_pretrained(mlp(), tmp_path / "a")
    before = model(points())
    with pytest.raises(MismatchError, match="other bases"):
        model.load_adapter(str(tmp_path / "b"), adapter_name="b")
    assert torch.equal(model(points()), before)


def add_reference(model: Any) -> None:
    """What DPO, KTO, GRPO and RLOO of TRL 1.16 do with a ``PeftModel``."""
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)


@pytest.mark.parametrize(
    "options",
    [{}, {"phi": 2}, {"form": "core", "phi": 1, "start": "a"}, {"start": "a", "known": ["a", "b"]}],
    ids=str,
)
def test_one_configuration_is_one_task_of_which_a_second_adapter_is_a_copy(
    options: dict[str, Any],
) -> None:
    share = space(mlp(), seed=5, tasks=["a", "b"])
    config = ShareConfig(
        share=publish(share), target_modules=TARGETS, modules_to_save=["head"], **options
    )
    model = get_peft_model(mlp(), config)
    randomise(model)
    model.base_model.model.first.set_scale("default", 0.5)
    expected = model(points())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    del share  # A copy needs no Share model.
    add_reference(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    randomise(model, seed=4)
    assert not torch.allclose(model(points()), expected)
    model.set_adapter("ref")
    torch.testing.assert_close(model(points()), expected)


def test_a_configuration_that_says_something_else_is_no_copy() -> None:
    config = ShareConfig(share=published(mlp(), tasks=("a", "b")), task="a", target_modules=TARGETS)
    model = get_peft_model(mlp(), config)
    randomise(model)
    model.add_adapter("again", copy.deepcopy(config))
    config.task = "b"
    model.add_adapter("b", config)
    for name, task in (("again", "a"), ("b", "b")):
        model.set_adapter(name)
        alone = ShareConfig(share=config.share, task=task, target_modules=TARGETS)
        torch.testing.assert_close(model(points()), get_peft_model(mlp(), alone)(points()))


def test_several_adapters_are_switched_and_added_up() -> None:
    share = published(mlp())
    model = adapted(mlp(), share=share, target_modules=["head"])
    config = ShareConfig(share=share, target_modules=["head"], phi=1, seed=6, init_weights=False)
    model.add_adapter("other", config)
    base = mlp()(points())
    one = model(points()) - base
    model.set_adapter("other")
    other = model(points()) - base
    assert not torch.allclose(one, other)
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(model(points()) - base, one + other, rtol=1e-4, atol=1e-4)
    with model.disable_adapter():
        assert torch.equal(model(points()), base)


def test_a_deleted_adapter_leaves_nothing() -> None:
    share = published(mlp())
    model = adapted(mlp(), share=share, target_modules=TARGETS)
    expected = model(points())
    for form in ("factors", "core"):
        config = ShareConfig(
            share=share, target_modules=[*TARGETS, "head"], phi=1, dropout=0.1, form=form
        )
        model.add_adapter("other", config)
        model.delete_adapter("other")
        assert [k for k in model.state_dict() if "other" in k] == []
        for module in model.base_model.model.modules():
            for value in vars(module).values():
                assert not (isinstance(value, dict) and "other" in value), (form, module)
    torch.testing.assert_close(model(points()), expected)


def test_merge_unmerge_and_unload() -> None:
    model = adapted(mlp(), target_modules=TARGETS, phi=1)
    expected, before = model(points()), mlp()(points())
    model.merge_adapter()
    torch.testing.assert_close(model(points()), expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(model(points()), expected, rtol=1e-4, atol=1e-4)
    with model.disable_adapter():
        torch.testing.assert_close(model(points()), before, rtol=1e-5, atol=1e-5)
    merged = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    assert type(merged) is type(mlp())
    torch.testing.assert_close(merged(points()), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.unload()(points()), before, rtol=1e-5, atol=1e-5)


def test_release_gives_the_base_model_back_with_its_own_head() -> None:
    model = adapted(mlp(), target_modules=TARGETS, modules_to_save=["head"])
    randomise(model)
    found = release(model)
    assert sorted(found.state_dict()) == sorted(mlp().state_dict())
    assert all(torch.equal(v, mlp().state_dict()[k]) for k, v in found.state_dict().items())


def test_saved_as_lora_by_peft(tmp_path: Path) -> None:
    model = adapted(mlp(), target_modules=TARGETS, p=2)
    expected = model(points())
    model.save_pretrained(tmp_path / "lora")
    assert model.supports_lora_conversion()
    peft = pytest.importorskip("peft")
    peft.save_as_lora(tmp_path / "lora", model, rank=2)
    found = PeftModel.from_pretrained(mlp(), tmp_path / "lora")
    assert found.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(found(points()), expected, rtol=1e-4, atol=1e-4)


# Known tasks


def test_a_known_task_is_loaded_exactly() -> None:
    share = space(mlp(), tasks=["a", "b"])
    model = get_peft_model(mlp(), ShareConfig(share=known(share), task="b"))
    value: Any = share.tasks["b"].coefficients["first"]
    layer = share.layers["first"]
    dense = layer.left_basis @ value.left @ value.right.mT @ layer.right_basis.mT
    torch.testing.assert_close(update_of(model.base_model.model.first), dense.double())
    wider = get_peft_model(mlp(), ShareConfig(share=known(share), task="b", p=4))
    torch.testing.assert_close(wider(points()), model(points()))
    with pytest.raises(OptionError, match="p=2"):
        get_peft_model(mlp(), ShareConfig(share=known(share), task="b", p=1))


def test_a_private_update_is_loaded_exactly_and_can_be_trained() -> None:
    share = space(mlp(), tasks=["a"])
    own = PerTask(torch.randn(14, 3), torch.randn(10, 3))
    task = share.tasks["a"]
    changed = replace(task, coefficients={**task.coefficients, "first": own})
    share = replace(share, tasks={"a": changed})
    model = get_peft_model(mlp(), ShareConfig(share=known(share), task="a"))
    expected = own.left.double() @ own.right.double().mT
    torch.testing.assert_close(update_of(model.base_model.model.first), expected)
    model(points()).sum().backward()
    new = model.base_model.model.first.sharespace_left_temporary["default"]
    assert new.grad is not None
    assert float(new.grad.norm()) > 0
    before = own.left.clone()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not torch.equal(new, before)
    assert torch.equal(own.left, before), "the stored task was changed"


def test_a_module_that_the_subspace_lacks_or_of_another_shape_is_named() -> None:
    share = space(mlp())
    fewer = share.with_layers({"first": share.layers["first"]})
    with pytest.raises(MismatchError, match=r"'second'.*no subspace"):
        get_peft_model(mlp(), ShareConfig(share=known(fewer), target_modules=TARGETS))
    other = mlp()
    other.first = torch.nn.Linear(10, 15)
    with pytest.raises(MismatchError, match=r"'first'.*\(15, 10\)"):
        get_peft_model(other, ShareConfig(share=known(share), target_modules=["first"]))


def test_low_memory_loading(tmp_path: Path) -> None:
    share = stored(tmp_path / "s", tasks=["a"])
    for name, options in (("new", {"phi": 1}), ("known", {"task": "a"})):
        model = get_peft_model(mlp(), ShareConfig(share=share, **options))
        randomise(model)
        model.save_pretrained(tmp_path / name)
        found = PeftModel.from_pretrained(mlp(), tmp_path / name, low_cpu_mem_usage=True)
        assert not any(t.is_meta for t in [*found.parameters(), *found.buffers()])
        torch.testing.assert_close(found(points()), model.eval()(points()))


def test_a_task_with_nothing_to_train_is_refused() -> None:
    """A tiny byte budget stores every update per task, and leaves no direction for others."""
    share, model = known(space(mlp(), k=0)), mlp()
    before = {name for name, _ in model.named_modules()}
    for options in ({}, {"form": "factors"}, {"modules_to_save": ["third"]}):
        with pytest.raises(OptionError, match=r"task 'new'.*no direction in any layer.*phi"):
            get_peft_model(model, ShareConfig(share=share, task="new", phi=0, **options))
        assert {name for name, _ in model.named_modules()} == before
    trained = get_peft_model(model, ShareConfig(share=share, task="new", phi=1))
    assert sum(p.numel() for p in trained.parameters() if p.requires_grad)
