"""The router: independent of the order of tasks, exact on removal, affine invariant."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from sharespace.errors import MismatchError, OptionError, TaskExistsError, TaskNotFoundError
from sharespace.route import Router, Statistics

D = 6


def _cloud(task: int, inputs: int = 60, seed: int = 0) -> Tensor:
    """Inputs of a task: its own mean, one stretched covariance for all tasks."""
    generator = torch.Generator().manual_seed(1000 * task + seed)
    noise = torch.randn(inputs, D, generator=generator, dtype=torch.float64)
    stretch = torch.tensor([12.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    mean = torch.zeros(D, dtype=torch.float64)
    mean[1 + task] = 5
    return noise * stretch + mean


def _router(tasks: list[int], shrinkage: float = 0.01, margin: float | None = None) -> Router:
    router = Router(shrinkage=shrinkage, margin=margin)
    for task in tasks:
        router = router.with_task(f"task {task}", Statistics.from_features(_cloud(task)))
    return router


def test_inputs_go_to_their_task_along_the_stretched_direction_too() -> None:
    router = _router([0, 1, 2])
    for task in range(3):
        routed = router.route(_cloud(task, seed=1)).tasks
        assert routed.count(f"task {task}") >= 0.97 * len(routed)


def test_the_order_of_arrival_changes_nothing_not_even_rounding() -> None:
    x = _cloud(1, seed=1)
    reference = _router([0, 1, 2, 3]).route(x)
    for seed in range(5):
        order = [0, 1, 2, 3]
        random.Random(seed).shuffle(order)
        found = _router(order).route(x)
        assert found.tasks == reference.tasks
        columns = [found.candidates.index(name) for name in reference.candidates]
        assert torch.equal(found.scores[:, columns], reference.scores)
        assert torch.equal(found.margins, reference.margins)


def test_adding_and_removing_a_task_is_the_identity() -> None:
    before = _router([0, 1], margin=1.0)
    after = before.with_task("x", Statistics.from_features(_cloud(4))).without_task("x")
    x = _cloud(0, seed=2)
    assert torch.equal(after.route(x).scores, before.route(x).scores)
    assert torch.equal(after.route(x).margins, before.route(x).margins)
    assert after.tasks.keys() == before.tasks.keys()
    assert after.margin == before.margin


def _after(matrix: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Margins, and scores about their mean, when all features are mapped by x -> x M + 1."""
    router = Router(shrinkage=shrinkage)
    for task in range(3):
        moved = _cloud(task) @ matrix + 1
        router = router.with_task(str(task), Statistics.from_features(moved))
    found = router.route(torch.cat([_cloud(t, seed=1) for t in range(3)]) @ matrix + 1)
    return found.margins, found.scores - found.scores.mean(dim=1, keepdim=True)


def test_affine_maps_of_the_features_change_nothing_but_shrinkage() -> None:
    eye = torch.eye(D, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(D, D, generator=generator, dtype=torch.float64) + 3 * eye
    turn, stretch = torch.linalg.qr(matrix)[0], torch.logspace(0, 2, D).double().diag()
    for one, other in zip(_after(eye, 1e-12), _after(matrix, 1e-12), strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)
    # Shrinkage has a unit of length: turning keeps it, stretching does not.
    for one, other in zip(_after(eye, 0.1), _after(turn, 0.1), strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(_after(eye, 0.1)[1], _after(stretch, 0.1)[1], rtol=1e-2)


def test_scores_are_log_densities_of_the_shrunk_gaussians() -> None:
    router = _router([0, 1], shrinkage=0.1)
    x = _cloud(0, inputs=4, seed=5)
    clouds = [_cloud(0), _cloud(1)]
    centred = torch.cat([c - c.mean(dim=0) for c in clouds])
    within = centred.mT @ centred / len(centred)
    shrunk = 0.9 * within + 0.1 * torch.eye(D, dtype=torch.float64) * within.diagonal().mean()
    expected = [
        torch.distributions.MultivariateNormal(c.mean(dim=0), shrunk).log_prob(x)  # type: ignore[no-untyped-call]
        for c in clouds
    ]
    found = router.route(x).scores
    constant = D / 2 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    assert torch.allclose(found - constant, torch.stack(expected, dim=1), rtol=1e-9)


def test_inputs_of_no_task_fall_back_below_the_margin() -> None:
    router = _router([0, 1, 2])
    held_out = torch.cat([_cloud(t, inputs=200, seed=7) for t in range(3)])
    assert router.route(held_out).fallback_rate == 0
    careful = router.with_fallback_rate(0.1, held_out)
    assert careful.route(held_out).fallback_rate == pytest.approx(0.1, abs=0.002)
    unknown = careful.route(_cloud(4, seed=1))
    assert unknown.fallback_rate > 0.9
    assert None in unknown.tasks
    assert None not in unknown.nearest


def test_rate_zero_gives_up_none_of_the_inputs_it_was_set_on() -> None:
    x = torch.cat([_cloud(t, seed=9) for t in range(2)])
    assert _router([0, 1]).with_fallback_rate(0, x).route(x).fallback_rate == 0


def test_the_margin_survives_new_tasks_and_the_old_router_is_untouched() -> None:
    old = _router([0, 1], margin=2.5)
    new = old.with_task("new", Statistics.from_features(_cloud(3)))
    assert new.margin == 2.5
    assert list(old.tasks) == ["task 0", "task 1"]
    assert new.route(_cloud(3, seed=1)).nearest.count("new") > 55


def test_one_task_and_few_inputs_are_enough() -> None:
    router = Router().with_task("only", Statistics.from_features(torch.ones(1, 3)))
    assert router.route(torch.randn(4, 3)).tasks == ("only",) * 4


@pytest.mark.parametrize("shrinkage", [0.0, -1.0, 1.5, float("nan")])
def test_shrinkage_must_be_a_fraction(shrinkage: float) -> None:
    with pytest.raises(OptionError, match="shrinkage"):
        Router(shrinkage=shrinkage)


def test_unusable_calls_are_refused() -> None:
    router = _router([0, 1])
    with pytest.raises(OptionError, match="no task"):
        Router().route(torch.zeros(1, D))
    with pytest.raises(MismatchError, match="dimension 3"):
        router.route(torch.zeros(1, 3))
    with pytest.raises(OptionError, match="finite"):
        router.route(torch.full((1, D), torch.inf))
    with pytest.raises(OptionError, match="no inputs"):
        router.route(torch.zeros(0, D))
    with pytest.raises(OptionError, match="margin"):
        _router([0], margin=float("nan"))
    with pytest.raises(OptionError, match="fallback rate"):
        router.with_fallback_rate(1.0, _cloud(0))
    with pytest.raises(TaskExistsError, match="task 0"):
        router.with_task("task 0", Statistics.from_features(_cloud(0)))
    with pytest.raises(TaskExistsError, match="empty"):
        router.with_task("", Statistics.from_features(_cloud(0)))
    with pytest.raises(MismatchError, match="'short'"):
        router.with_task("short", Statistics.from_features(torch.randn(5, 2)))
    with pytest.raises(TaskNotFoundError, match=r"'task 9'.*'task 0'"):
        router.without_task("task 9")
