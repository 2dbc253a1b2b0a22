"""One layer: its formula, its gradients, its kinds, its dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from builders import law
from sharespace.errors import MismatchError, OptionError
from sharespace.tuner import ShareConfig, SubspaceLayer
from tuner.spaces import (
    Mlp,
    adapted,
    gradients,
    mlp,
    points,
    published,
    randomise,
    seeded,
    update_of,
)

FORMS: list[dict[str, Any]] = [
    {},
    {"phi": 2},
    {"p": 3, "phi": 1},
    {"form": "core", "p": 3, "phi": 1},
    {"form": "core", "p": 2},
]
CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(3, 6, 3), (2, 3, 9)),
    "2d": (lambda: nn.Conv2d(3, 6, 3), (2, 3, 7, 8)),
    "3d": (lambda: nn.Conv3d(2, 4, 2), (2, 2, 4, 5, 4)),
    "1x1": (lambda: nn.Conv2d(6, 5, 1, bias=False), (2, 6, 4, 4)),
    "stride": (lambda: nn.Conv2d(3, 6, 3, stride=2, padding=1), (2, 3, 7, 8)),
    "dilation": (lambda: nn.Conv2d(3, 6, (3, 2), dilation=(2, 1), padding=(0, 1)), (2, 3, 9, 8)),
    "same": (lambda: nn.Conv2d(3, 6, 3, padding="same", padding_mode="circular"), (2, 3, 7, 8)),
    "groups": (lambda: nn.Conv2d(6, 8, 3, groups=2, padding=1), (2, 6, 5, 5)),
    "depthwise": (lambda: nn.Conv1d(6, 6, 3, groups=6), (2, 6, 9)),
}


def one(make: Callable[[], nn.Module], **options: Any) -> tuple[Any, Any, Any]:
    """(PEFT model, adapted layer, the plain module) of one module."""
    plain = seeded(make)
    model = adapted(nn.Sequential(seeded(make)), **options)
    randomise(model)
    return model, model.base_model.model[0], plain


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_linear_layer_adds_the_update(options: dict[str, Any], mode: str) -> None:
    model, layer, plain = one(lambda: nn.Linear(24, 9), **options)
    model.train(mode == "train")
    x = points(5, 24)
    expected = plain(x).double() + x.double() @ update_of(layer).mT
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)
    delta = layer.get_delta_weight("default").double()
    torch.testing.assert_close(delta, update_of(layer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", FORMS, ids=str)
@pytest.mark.parametrize("d", [8, 40])
def test_gradients_are_those_of_the_formula(options: dict[str, Any], d: int) -> None:
    """d = 40 takes the way through alpha^T x, d = 8 the other."""
    model, layer, plain = one(lambda: nn.Linear(d, 9), **options)
    x = points(5, d).requires_grad_()
    model.train()
    model(x).square().sum().backward()
    got, got_x = gradients(model), x.grad
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert sorted(got) == sorted(names)
    expected_x = points(5, d).requires_grad_()
    parameters = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    values = {n.rpartition(".")[0].rpartition(".")[2]: p for n, p in parameters.items()}
    left = torch.cat([layer.left_basis, values.get("sharespace_left_temporary", empty(9))], 1)
    right = torch.cat([layer.right_basis, values.get("sharespace_right_temporary", empty(d))], 1)
    inner = values["sharespace_left_coefficients"]
    if "sharespace_core" in values:
        inner = inner @ values["sharespace_core"]
    dense = left @ inner @ values["sharespace_right_coefficients"].mT @ right.mT
    (plain(expected_x) + expected_x @ dense.mT).square().sum().backward()
    torch.testing.assert_close(got_x, expected_x.grad, rtol=1e-4, atol=1e-4)
    for name in names:
        torch.testing.assert_close(got[name], parameters[name].grad, rtol=1e-4, atol=1e-4)


def empty(rows: int) -> Tensor:
    return torch.zeros(rows, 0)


def test_training_coefficients_keeps_less_than_the_inputs() -> None:
    model, _, _ = one(lambda: nn.Linear(400, 9), phi=0)
    kept: list[int] = []

    def count(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        model.train()(points(50, 400).requires_grad_())
    assert 50 * 400 not in kept
    assert 50 * 4 in kept


@pytest.mark.parametrize("options", [{}, {"phi": 2}], ids=str)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_of_every_kind(kind: str, options: dict[str, Any]) -> None:
    make, shape = CONVOLUTIONS[kind]
    model, layer, plain = one(make, **options)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    changed = seeded(make)
    dense = update_of(layer).reshape(changed.weight.shape)
    changed.weight.data = (plain.weight.double() + dense).float()
    expected = changed(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert (layer.out_features, layer.in_features) == update_of(layer).shape


def test_conv1d_of_transformers_is_transposed() -> None:
    model, layer, plain = one(lambda: Conv1D(12, 20))
    x = points(5, 20)
    expected = plain(x).double() + x.double() @ update_of(layer).mT
    assert tuple(update_of(layer).shape) == (12, 20)
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.merge_and_unload()(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: nn.Embedding(10, 14), lambda: nn.ConvTranspose2d(2, 3, 2), nn.ReLU]
)
def test_modules_of_other_kinds_are_refused(make: Callable[[], nn.Module]) -> None:
    class Other(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.first = make()  # type: ignore[assignment]

    config = ShareConfig(share=published(mlp()), target_modules=["first"])
    with pytest.raises(MismatchError, match=r"first|neither linear nor a convolution") as refused:
        adapted(Other(), share=config.share, target_modules=["first"])
    assert "modules_to_save" in str(refused.value) or "base model" in str(refused.value)


def test_an_embedding_can_be_saved_whole() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.first = nn.Embedding(7, 10), nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.first(self.embedding(x))
            return found

    model = adapted(Text(), target_modules=["first"], modules_to_save=["embedding"])
    model(torch.tensor([1, 2])).sum().backward()
    assert any("embedding" in name for name in gradients(model))


def test_dropout_acts_only_in_training() -> None:
    model, _, _ = one(lambda: nn.Linear(30, 9), dropout=0.5)
    x = points(5, 30)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))
    plain, _, _ = one(lambda: nn.Linear(30, 9))
    model.eval()
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, "dropout"),
        ({"p": 0}, "p=0"),
        ({"phi": -1}, "phi"),
        ({"form": "other"}, "form"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ShareConfig(share="x", **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"phi": 1}], ids=str)
def test_half_base_weights_keep_coefficients_in_float32(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    model = adapted(mlp().to(dtype), **options)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    out = model(points().to(dtype))
    assert out.dtype == dtype
    out.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in trained if p.grad is not None)
    exact = adapted(mlp(), **options)(points())
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("options", [{}, {"phi": 1}], ids=str)
def test_autocast_to_bfloat16(options: dict[str, Any]) -> None:
    model = adapted(mlp(), **options).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(points())
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert {g.dtype for g in gradients(model).values()} == {torch.float32}
    torch.testing.assert_close(out.float(), model(points()), rtol=0.05, atol=0.2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_whole_model_may_change_its_dtype(dtype: torch.dtype) -> None:
    model = adapted(mlp(), phi=1)
    expected = model(points())
    got = model.to(dtype)(points().to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.3)


def test_scales_weigh_one_adapter() -> None:
    model, layer, plain = one(lambda: nn.Linear(24, 9))
    x = points(5, 24)
    change = model(x) - plain(x)
    layer.set_scale("default", 0.5)
    torch.testing.assert_close(model(x) - plain(x), 0.5 * change, rtol=1e-4, atol=1e-4)
    layer.scale_layer(4.0)
    torch.testing.assert_close(model(x) - plain(x), 2 * change, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.get_delta_weight("default").double(), 2 * update_of(layer))
    layer.unscale_layer(2.0)
    torch.testing.assert_close(model(x) - plain(x), change, rtol=1e-4, atol=1e-4)
    layer.set_scale("default", 3.0)
    layer.unscale_layer()
    layer.set_scale("another", 9.0)
    torch.testing.assert_close(model(x) - plain(x), change, rtol=1e-4, atol=1e-4)


@law(20)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 9),
    st.integers(0, 3),
    st.sampled_from(["factors", "core"]),
)
def test_merged_and_unmerged_agree_at_any_size(n: int, d: int, p: int, phi: int, form: str) -> None:
    options: dict[str, Any] = {"p": p, "phi": min(phi, p), "form": form}
    model, layer, plain = one(lambda: nn.Linear(d, n), **options)
    model.requires_grad_(False)
    x = points(3, d)
    expected = functional.linear(x.double(), update_of(layer)) + plain(x).detach()
    model.merge_adapter(safe_merge=True)
    scale = float(expected.abs().max()) + 1
    assert float((model(x) - expected).abs().max()) < 1e-5 * scale
    model.unmerge_adapter()
    assert float((model(x) - expected).abs().max()) < 1e-5 * scale
    assert isinstance(layer, SubspaceLayer)


def test_safe_merge_refuses_what_is_not_finite_and_changes_nothing() -> None:
    model, layer, plain = one(lambda: nn.Linear(24, 9))
    with torch.no_grad():
        layer.sharespace_left_coefficients["default"][0, 0] = torch.inf
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, plain.weight)
    assert not layer.merged_adapters


def test_unmerging_what_is_not_merged_warns() -> None:
    _, layer, plain = one(lambda: nn.Linear(24, 9))
    with pytest.warns(UserWarning, match="unmerged"):
        layer.unmerge()
    assert torch.equal(layer.base_layer.weight, plain.weight)
