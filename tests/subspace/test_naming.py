"""One name for one module, whichever class of the base model an adapter was made with."""

from __future__ import annotations

import pytest
import torch

from builders import FULL, adapter, build, update
from sharespace.errors import MismatchError
from sharespace.subspace.adapter import Adapter, BaseModel
from sharespace.subspace.merge import merge, union
from sharespace.subspace.naming import COMPONENTS, common_names
from sharespace.subspace.state import ShareModel

ATTENTION = "0.self_attn.q_proj"
WAYS = [
    ("model.layers", "layers"),
    ("layers", "model.layers"),
    ("model.layers", "model.language_model.layers"),
    ("model.language_model.layers", "language_model.model.layers"),
    ("model.visual.blocks", "visual.blocks"),
    ("bert.encoder.layer", "encoder.layer"),
    ("encoder.layer", "roberta.encoder.layer"),
    ("transformer.h", "h"),
    ("model.vision.encoder.layers", "model.vision.module.encoder.layers"),
    ("text_encoder.text_model.encoder.layers", "text_encoder.encoder.layers"),
    ("unet.down_blocks", "down_blocks"),
    ("down_blocks", "unet.down_blocks"),
]


def _at(name: str, root: str, *more: str, base: str | None = None, **options: object) -> Adapter:
    modules = {f"{root}.{ATTENTION}": update(8, 6, 2, 1)}
    modules |= {m: update(6, 6, 2, 3) for m in more}
    return adapter(name, modules, base=BaseModel(base), **options)


def _layers(model: ShareModel) -> list[str]:
    return list(model.layers)


@pytest.mark.parametrize(("first", "second"), WAYS)
def test_a_newcomer_gets_the_names_that_are_there(first: str, second: str) -> None:
    a, b = _at("a", first), _at("b", second)
    own = [f"{first}.{ATTENTION}"]
    built = build([a], FULL)
    assert _layers(build([a, b], FULL)) == own
    assert _layers(merge(built, [b])) == own
    joined = union(built, build([b], FULL))
    assert _layers(joined) == own
    assert joined.tasks["b"].ledger.modules == tuple(own)


def test_neighbours_follow_and_kept_tensors_too() -> None:
    bias = torch.ones(8)
    key = f"base_model.model.layers.{ATTENTION}.lora_B.bias"
    head = "base_model.model.score.weight"
    b = _at("b", "layers", "layers.0.mlp", "score", kept={key: bias, head: bias})
    model = build([_at("a", "model.layers"), b], FULL)
    assert _layers(model) == [f"model.layers.{ATTENTION}", "model.layers.0.mlp", "score"]
    assert set(model.tasks["b"].kept) == {key.replace("model.layers", "model.model.layers"), head}


def test_a_part_of_a_renamed_adapter_reads_its_own_module() -> None:
    a, b = _at("a", "model.layers"), _at("b", "layers")
    module = f"model.layers.{ATTENTION}"
    renamed = common_names([b], build([a], FULL))[0]
    assert torch.equal(renamed.part(module).layer(module).up, b.layer(f"layers.{ATTENTION}").up)


def test_the_names_with_a_component_are_taken_by_all() -> None:
    pipeline = _at("b", "unet.down_blocks", config={COMPONENTS: ["unet"]})
    model = build([_at("a", "down_blocks"), pipeline], FULL)
    assert _layers(model) == [f"unet.down_blocks.{ATTENTION}"]
    assert model.tasks["a"].config[COMPONENTS] == ["unet"]


def test_two_towers_are_two_towers() -> None:
    names = ["encoder.layers", "decoder.layers", "vision_model.encoder.layers"]
    towers = [_at(n, n, base="acme/base") for n in names]
    with pytest.raises(MismatchError, match="vision_model"):
        build(towers, FULL)
    assert len(build(towers[:2], FULL).layers) == 2
    two = [_at(n, f"{n}.blocks", base="x/y") for n in ("transformer", "transformer_2")]
    assert len(build(two, FULL).layers) == 2


def test_what_may_be_two_modules_is_refused() -> None:
    both = adapter("a", {f"{r}.blocks.0.q": update(8, 6, 2, 1) for r in ("unet", "controlnet")})
    with pytest.raises(MismatchError, match=r"may be .*Save it again"):
        build([both, adapter("b", {"blocks.0.q": update(8, 6, 2)})], FULL)


@pytest.mark.parametrize("base", [None, "/content/gemma", "acme/other"])
def test_nothing_in_common_and_no_base_to_compare(base: str | None) -> None:
    a = _at("a", "transformer.h", base="acme/base")
    b = adapter("b", {"model.layers.0.q": update(8, 6, 2)}, base=BaseModel(base))
    with pytest.raises(MismatchError, match=r"'b'.*--base ID"):
        build([a, b], FULL)
    model = build([a], FULL)
    with pytest.raises(MismatchError, match="'b'"):
        merge(model, [b])
    with pytest.raises(MismatchError):
        union(model, build([b], FULL))
    assert len(merge(model, [b], base=BaseModel("acme/base")).layers) == 2


def test_two_pairs_of_two_bases_are_refused() -> None:
    pairs = [
        _at(n, root, base=base)
        for n, root, base in [
            ("a", "h", None),
            ("b", "h", None),
            ("c", "x.layers", "/d"),
            ("d", "x.layers", "/e"),
        ]
    ]
    with pytest.raises(MismatchError, match="no module in common"):
        build(pairs, FULL)


def test_a_factor_that_is_kept_by_its_name_is_not_renamed() -> None:
    kept = {"base_model.model.embed.lora_embedding_A": torch.ones(2, 3)}
    b = _at("b", "layers", kept=kept, config={"rank_pattern": {"^embed": 2}})
    with pytest.raises(MismatchError, match="go by their names"):
        build([_at("a", "model.layers"), b], FULL)
