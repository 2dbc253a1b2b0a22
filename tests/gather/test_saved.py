"""From a PeftModel, or the directory that it was saved to, into a contribution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from builders import dense
from learn.nets import adapter, net
from sharespace import Share
from sharespace.errors import (
    ContributionError,
    CorruptAdapterError,
    OptionError,
    TaskExistsError,
)
from sharespace.gather import decode, gather, read_contribution, submit
from sharespace.learn import contribute, merge_from
from sharespace.subspace.adapter import BASE_FIELD
from sharespace.tuner import ShareConfig, publish

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*")


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """Two tasks, no cap."""
    path = tmp_path / "net.share"
    Share.from_adapters([adapter("a", 1, scale=0.1), adapter("b", 2, scale=0.1)], variance=1).save(
        path
    )
    return path


def trained(config: Any, seed: int = 0) -> Any:
    """As after training: everything that is trained has moved."""
    model = peft.get_peft_model(net(), config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return model


CONFIGS: dict[str, dict[str, Any]] = {
    "coefficients": {"phi": 0},
    "temporary directions": {"phi": 2, "modules_to_save": ["classifier"]},
    "core": {"phi": 2, "p": 4, "form": "core"},
    "some modules": {"phi": 1, "target_modules": ["second"]},
    "own basis": {"phi": 1, "save_basis": True},
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("plain", [False, True])
def test_what_was_trained_arrives(share: Path, tmp_path: Path, kind: str, plain: bool) -> None:
    model = trained(ShareConfig(share=str(share), task="new", **CONFIGS[kind]))
    wanted = merge_from(Share.load(share), model)
    found = contribute(model, tmp_path / "inbox", plain=plain)
    assert (found.task, found.version) == ("new", None if plain else 1)
    gather(share, tmp_path / "inbox")
    after = Share.load(share)
    for module, update in wanted.updates("new").items():
        right = dense(update)
        assert float((dense(after.updates("new")[module]) - right).norm() / right.norm()) < 3e-6
    assert set(after.updates("new")) == set(wanted.updates("new"))
    # Coefficients belong to the Share model, so to its base; a model without a name states none.
    arrived, merged = (dict(s.task("new").config) for s in (after, wanted))
    assert {k: v for k, v in arrived.items() if k != BASE_FIELD} == {
        k: v for k, v in merged.items() if k != BASE_FIELD
    }
    kept, right_kept = after.task("new").kept, wanted.task("new").kept
    assert {k: v.tolist() for k, v in kept.items()} == {
        k: v.tolist() for k, v in right_kept.items()
    }
    assert after.model.base == wanted.model.base


def test_the_file_is_smaller_than_plain_factors(share: Path, tmp_path: Path) -> None:
    model = trained(ShareConfig(share=str(share), task="new", p=4, phi=0))
    small, large = (contribute(model, tmp_path / "inbox", plain=x) for x in (False, True))
    assert small.bytes < large.bytes
    assert small.id != large.id


def test_a_lora_of_peft(share: Path, tmp_path: Path) -> None:
    model = trained(peft.LoraConfig(target_modules=["first", "second"], r=3, lora_alpha=6))
    wanted = merge_from(Share.load(share), model, task="lora")
    contribute(model, tmp_path / "inbox", task="lora")
    gather(share, tmp_path / "inbox")
    after = Share.load(share)
    for module, update in wanted.updates("lora").items():
        right = dense(update)
        assert float((dense(after.updates("lora")[module]) - right).norm() / right.norm()) < 3e-6
    assert after.task("lora").provenance.format == "peft"


def test_another_adapter_of_the_model(share: Path, tmp_path: Path) -> None:
    model = trained(ShareConfig(share=str(share), task="one"))
    model.add_adapter("second", ShareConfig(share=str(share), task="two", init_weights=False))
    contribute(model, tmp_path / "inbox", adapter="second")
    assert [a.task for a in gather(share, tmp_path / "inbox").merged] == ["two"]


def test_a_directory_knows_its_task_base_and_version(share: Path, tmp_path: Path) -> None:
    model = trained(ShareConfig(share=str(share), task="new", phi=1))
    model.save_pretrained(tmp_path / "adapter")
    found = read_contribution(tmp_path / "adapter")
    assert (found.task, found.base.id) == ("new", "tiny/net")
    assert found.fingerprint == Share.load(share).model.fingerprint
    assert found.basis is not None
    assert (found.basis.version, len(found.basis.id)) == (1, 64)
    sent = submit(tmp_path / "adapter", tmp_path / "inbox", task="other")
    data = (tmp_path / "inbox" / sent.file).read_bytes()
    assert decode(data, sent.file).task == "other"


def test_a_share_model_that_is_far_away(share: Path, tmp_path: Path) -> None:
    """The worker's path leads nowhere here: the basis is known by its id."""
    model = trained(ShareConfig(share=str(share), task="new", phi=1))
    model.save_pretrained(tmp_path / "adapter")
    share.rename(tmp_path / "moved.share")
    assert read_contribution(tmp_path / "adapter").fingerprint is None
    submit(tmp_path / "adapter", tmp_path / "inbox")
    assert gather(tmp_path / "moved.share", tmp_path / "inbox").merged


def test_bases_in_memory(tmp_path: Path) -> None:
    memory = Share.from_adapters([adapter("a", 1), adapter("b", 2)], variance=1)
    model = trained(ShareConfig(share=publish(memory.model), task="new", phi=1))
    with pytest.raises(ContributionError, match="in memory only"):
        contribute(model, tmp_path / "inbox", plain=True)
    found = contribute(model, tmp_path / "inbox")
    memory.save(tmp_path / "s")
    assert found.version is None
    assert gather(tmp_path / "s", tmp_path / "inbox").merged


def test_plain_is_the_remedy_for_pruned_bases(share: Path, tmp_path: Path) -> None:
    model = trained(ShareConfig(share=str(share), task="new", phi=1))
    other = tmp_path / "other.share"
    Share.from_adapters([adapter("x", 7)], variance=1).save(other)
    contribute(model, tmp_path / "inbox")
    assert gather(other, tmp_path / "inbox").refused
    contribute(model, tmp_path / "inbox", plain=True)
    assert gather(other, tmp_path / "inbox").merged


def test_names_and_adapters_that_are_missing(share: Path, tmp_path: Path) -> None:
    model = trained(ShareConfig(share=str(share), task="new"))
    with pytest.raises(OptionError, match="no PEFT adapter 'x'"):
        contribute(model, tmp_path / "inbox", adapter="x")
    with pytest.raises(OptionError, match="no name"):
        contribute(trained(peft.LoraConfig(target_modules=["first"])), tmp_path / "inbox")
    with pytest.raises(ContributionError, match="path"):
        contribute(model, tmp_path / "inbox", task="a/b")
    with pytest.raises(TaskExistsError):
        merge_from(Share.load(share), model, task="a")
    assert not (tmp_path / "inbox").exists()


@pytest.mark.parametrize("field", ["basis_id", "weights"])
def test_a_directory_that_is_damaged(share: Path, tmp_path: Path, field: str) -> None:
    folder = tmp_path / "adapter"
    trained(ShareConfig(share=str(share), task="new")).save_pretrained(folder)
    if field == "weights":
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
    else:
        config = json.loads((folder / "adapter_config.json").read_text())
        config["basis_id"] = None
        (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptAdapterError):
        submit(folder, tmp_path / "inbox")
    assert not (tmp_path / "inbox").exists()


def test_nan_is_refused_where_it_comes_from(share: Path, tmp_path: Path) -> None:
    model = trained(ShareConfig(share=str(share), task="new"))
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad)[0, 0] = torch.nan
    with pytest.raises(ContributionError, match="not finite"):
        contribute(model, tmp_path / "inbox")
