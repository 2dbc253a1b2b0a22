"""Parts of the experiment on images: sets, bases, pixels, its real recipes on stand-ins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from shared_data import SHARED
from sharespace.errors import OptionError

DATA = SHARED / "data"
here = pytest.mark.skipif(
    not (DATA / "images").is_dir() or not (DATA / "backbones").is_dir(),
    reason="images and weights are not here",
)


@here
def test_both_halves_of_the_mobilenet_are_the_whole() -> None:
    from experiments.harness.mobilenet import load_mobilenet
    from experiments.images.mobile import mobilenet

    folder = DATA / "backbones" / "mobilenet_v1_025_128"
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    base = mobilenet(folder, blocks=8, side=128)
    with torch.no_grad():
        wanted = load_mobilenet(folder).mobilenet_v1(images).pooler_output
        found = base.upper(base.lower(images))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert base.targets == tuple(f"layer.{i}.convolution" for i in (17, 19, 21, 23, 25))
    assert base.digest == mobilenet(folder, blocks=8, side=128).digest
    assert base.digest != mobilenet(folder, blocks=9, side=128).digest  # other hidden states


@here
def test_tasks_of_the_streams() -> None:
    from experiments.images.sets import read
    from experiments.images.tasks import PRETRAINED, STREAMS, TASKS

    images = DATA / "images"
    for name in ("cifar-9", "things", "mnist-noisy", "korean"):
        train, test = (read(TASKS[name], images, split) for split in ("train", "test"))
        assert set(train.labels.tolist()) == set(range(train.classes))
        assert set(test.labels.tolist()) <= set(range(train.classes))
        assert len(train.names) == train.classes
        assert train.images.shape[1] == 3
        assert len(test) >= 200
    for name in {task for stream in STREAMS["vit"].values() for task in stream}:
        # What the ViT has learned in pretraining is in none of its tasks.
        assert not set(TASKS[name].classes or ()) & set(PRETRAINED)


@here
def test_changes_of_images() -> None:
    from experiments.images.sets import read
    from experiments.images.tasks import TASKS

    images = DATA / "images"
    plain, turned, dark = (
        read(TASKS[name], images, "test", 8)
        for name in ("fashion", "fashion-rotated", "fashion-inverted")
    )
    assert torch.equal(turned.images, torch.rot90(plain.images, 1, (2, 3)))
    assert torch.equal(dark.images, 255 - plain.images)
    assert torch.equal(plain.labels, turned.labels)
    noisy = read(TASKS["mnist-noisy"], images, "test", 8)
    assert torch.equal(noisy.images[:, 0], noisy.images[:, 2])  # still grey
    assert torch.equal(noisy.images, read(TASKS["mnist-noisy"], images, "test", 8).images)


@here
def test_what_is_not_there(tmp_path: Path) -> None:
    from experiments.images.sets import Source, read

    with pytest.raises(OptionError, match="Check --data"):
        read(Source("mnist"), tmp_path, "train")
    with pytest.raises(OptionError, match="Known: Balinese"):
        read(Source("omniglot", alphabet="Elvish"), DATA / "images", "train")


def test_pixels() -> None:
    from experiments.images.base import pixels

    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    same, large = pixels(images, 4), pixels(images, 16)
    assert same[:, 0, 0, 0].tolist() == [-1, 1]
    assert large.shape == (2, 3, 16, 16)
    assert [float(large.min()), float(large.max())] == [-1, 1]


def test_a_dead_feature_does_not_harm_the_head() -> None:
    from experiments.harness.heads import Head, train_head

    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    labels = (features[:, 0] > 0).long()
    features[:, 3] = 0
    head = train_head(Head(features, 2), features, labels, seed=0)
    assert (head(features).argmax(1) == labels).float().mean() > 0.9
    assert bool(torch.isfinite(head(torch.randn(4, 6) * 5)).all())


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("datasets", "peft", "transformers", "accelerate"):
        pytest.importorskip(name, reason="the extra train is not installed")
    from experiments.images.standins import make

    folder = tmp_path_factory.mktemp("standins")
    make(folder)
    return folder


def test_the_recipes_on_stand_ins(standins: Path) -> None:
    import huggingface_hub.constants

    from sharespace.stream import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        results = {
            name: run(standins / f"vit-{name}.yaml")
            for name in ("lora", "data", "adapters", "hybrid")
        }
    assert [len(r.steps) for r in results.values()] == [1, 4, 4, 4]
    learned = {
        name: [one.how for step in result.steps for one in step.learned]
        for name, result in results.items()
    }
    assert learned["lora"] == ["lora"] * 4
    assert learned["data"] == ["lora", "data", "data", "data"]
    assert learned["adapters"] == ["adapter"] * 4
    assert learned["hybrid"] == ["adapter", "data", "adapter", "data"]


def test_the_recipes_are_of_the_same_tasks() -> None:
    from experiments.images.standins import HERE, RECIPES

    from sharespace.stream.recipe import load_recipe

    recipes = [load_recipe(HERE / f"{name}.yaml") for name in RECIPES]
    sources = [{t.name: (t.data.text if t.data else "") for t in r.tasks} for r in recipes]
    assert all(found == sources[0] for found in sources)
    assert {r.base.text for r in recipes} == {"google/vit-base-patch16-224-in21k"}
    hybrid = yaml.safe_load((HERE / "vit-hybrid.yaml").read_text())
    assert ["adapter" in task for task in hybrid["tasks"]] == [True, False, True, False]
