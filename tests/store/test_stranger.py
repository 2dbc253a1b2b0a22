"""docs/format.md is enough to read a store: a reader that knows nothing else agrees with ours."""

from __future__ import annotations

import numpy as np
import torch

from golden import make_store_v2, make_store_v3
from golden.make_store_v1 import PATH, WEIRD, numbers, version
from sharespace.subspace.coefficients import Coefficients
from sharespace.subspace.layer import LayerSubspace
from store.stranger import files_of, is_base, read_current, read_object, updates


def our_update(layer: LayerSubspace, value: Coefficients) -> torch.Tensor:
    left, right, core = value.framed(layer)
    return left.double() @ core[0] @ right.double().T


def test_the_updates_are_ours() -> None:
    manifest, ours = read_current(PATH), version(2)
    assert [task["name"] for task in manifest["tasks"]] == [WEIRD, "second"]
    for name, task in ours.tasks.items():
        found = updates(PATH, manifest, name)
        assert list(found) == list(task.coefficients)
        for module, coefficients in task.coefficients.items():
            wanted = our_update(ours.layers[module], coefficients)
            assert np.array_equal(found[module], wanted.numpy())


def test_the_updates_of_groups_are_ours() -> None:
    manifest, ours = read_current(make_store_v2.PATH), make_store_v2.model()
    for name, task in ours.tasks.items():
        found = updates(make_store_v2.PATH, manifest, name)
        for module, coefficients in task.coefficients.items():
            wanted = our_update(ours.layers[module], coefficients)
            assert np.array_equal(found[module], wanted.numpy())


def test_what_is_kept_is_ours() -> None:
    manifest, ours = read_current(PATH), version(2).tasks[WEIRD]
    found, metadata = read_object(PATH, manifest["tasks"][0]["kept"])
    assert metadata == {}
    assert set(found) == set(ours.kept)
    for key, tensor in ours.kept.items():
        flat = tensor.reshape(-1).view(torch.uint8).numpy()
        assert found[key].tobytes() == flat.tobytes()
        assert found[key].shape == tuple(tensor.shape)


def test_the_metadata_is_ours() -> None:
    manifest, ours = read_current(PATH), version(2).tasks[WEIRD]
    tensors, metadata = read_object(PATH, manifest["tasks"][0]["coefficients"])
    assert metadata["config"] == dict(ours.config)
    assert metadata["adapter_bytes"] == ours.adapter_bytes
    assert np.array_equal(tensors["ledger.norms"], ours.ledger.norms.numpy())
    assert np.array_equal(tensors["ledger.truncations"], ours.ledger.truncations.numpy())


def test_the_files_and_labels_are_ours() -> None:
    manifest = read_current(make_store_v3.PATH)
    first, second = manifest["tasks"]
    assert files_of(make_store_v3.PATH, first) == make_store_v3.FILES
    assert files_of(make_store_v3.PATH, second) == {}
    ours = make_store_v3.model().tasks[WEIRD]
    assert (tuple(first["labels"]), first["started_from"]) == (ours.labels, ours.started_from)


def test_the_base_is_ours() -> None:
    manifest, ours = read_current(make_store_v3.PATH), make_store_v3.model()
    weights = {
        module: numbers(i, layer.shape.out_features, layer.shape.in_features)
        for i, (module, layer) in enumerate(ours.layers.items())
    }
    rounded = {module: (w * 1.003).numpy() for module, w in weights.items()}
    assert is_base(make_store_v3.PATH, manifest, rounded)
    other = {module: (w * 1.02).numpy() for module, w in weights.items()}
    assert not is_base(make_store_v3.PATH, manifest, other)
