"""Viewpoints as rotations, errors between them, symmetry, and the scores of Pascal3D+."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from experiments.pose.rotations import about_x, about_z, error, geodesic, rotation, turns
from experiments.pose.scoring import pose_score
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sharespace.errors import OptionError
from sharespace.extras import require

Rotation = require("scipy.spatial.transform", "train").Rotation
degree = math.pi / 180
angle = st.floats(-math.pi, math.pi)
triples = st.tuples(angle, angle, angle)


def of(*degrees: float) -> Tensor:
    return rotation(torch.tensor(degrees, dtype=torch.float64) * degree)


def matrix(angles: tuple[float, float, float]) -> Tensor:
    return rotation(torch.tensor(angles, dtype=torch.float64))


def camera(azimuth: float, elevation: float) -> Tensor:
    """Where Pascal3D+ puts the camera, at distance 1."""
    a, e = azimuth * degree, elevation * degree
    place = [math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a), math.sin(e)]
    return torch.tensor(place, dtype=torch.float64)


def test_seen_from_the_front_up_is_up_and_the_front_is_near() -> None:
    up, front, right = torch.tensor(
        [[0, 0, 1], [0, -1, 0], [1, 0, 0]], dtype=torch.float64
    ).unbind()
    seen = of(0, 0, 0)
    for of_object, of_camera in ((up, [0, 1, 0]), (front, [0, 0, 1]), (right, [1, 0, 0])):
        expected = torch.tensor(of_camera, dtype=torch.float64)
        torch.testing.assert_close(seen @ of_object, expected)


@pytest.mark.parametrize("azimuth", [0, 30, 90, 200, 315])
@pytest.mark.parametrize("elevation", [-20, 0, 45])
def test_the_camera_looks_at_the_object(azimuth: float, elevation: float) -> None:
    """The direction to the camera is backwards for it, whatever it is turned by."""
    for theta in (0, 25):
        towards = of(azimuth, elevation, theta) @ camera(azimuth, elevation)
        torch.testing.assert_close(towards, torch.tensor([0, 0, 1], dtype=torch.float64))


def test_theta_turns_the_image_against_the_clock() -> None:
    up = torch.tensor([0, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(of(70, 0, 90) @ up, torch.tensor([-1.0, 0, 0], dtype=torch.float64))


def test_is_a_rotation_as_scipy_has_it() -> None:
    azimuth, elevation, theta = 0.7, -0.3, 0.2
    expected = Rotation.from_euler("ZXZ", [theta, elevation - math.pi / 2, -azimuth]).as_matrix()
    np.testing.assert_allclose(matrix((azimuth, elevation, theta)).numpy(), expected, atol=1e-12)


@given(triples, triples)
def test_the_error_is_symmetric_and_in_range(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> None:
    a, b = matrix(first), matrix(second)
    there, back = geodesic(a, b), geodesic(b, a)
    torch.testing.assert_close(there, back)
    assert 0 <= there <= math.pi + 1e-9
    expected = Rotation.from_matrix((a.T @ b).numpy()).magnitude()
    assert float(there) == pytest.approx(expected, abs=1e-7)


@given(triples, triples, triples)
def test_the_error_does_not_depend_on_the_axes(
    first: tuple[float, float, float],
    second: tuple[float, float, float],
    turn: tuple[float, float, float],
) -> None:
    a, b, by = matrix(first), matrix(second), matrix(turn)
    torch.testing.assert_close(geodesic(by @ a, by @ b), geodesic(a, b), atol=1e-7, rtol=0)
    torch.testing.assert_close(geodesic(a @ by, b @ by), geodesic(a, b), atol=1e-7, rtol=0)


@pytest.mark.parametrize("size", [0.0, 1e-6, 0.1, 30.0, 90.0, 180.0])
def test_known_errors(size: float) -> None:
    turned = torch.tensor(size * degree, dtype=torch.float64)
    for about in (about_x, about_z):
        found = geodesic(of(20, 10, 5), of(20, 10, 5) @ about(turned))
        assert float(found) / degree == pytest.approx(size, abs=1e-9)
    assert float(geodesic(of(0, 0, 0), of(size, 0, 0))) / degree == pytest.approx(size, abs=1e-9)


def test_a_symmetric_object_is_scored_by_the_nearest_pose_that_looks_the_same() -> None:
    group = turns((0, 0, 1), 4)
    true = torch.stack([of(10, 20, 0)] * 4)
    predicted = torch.stack([of(100, 20, 0), of(195, 20, 0), of(10, 20, 12), of(55, 20, 0)])
    found = error(predicted, true, group) / degree
    expected = torch.tensor([0, 5, 12, 45], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found <= error(predicted, true) / degree + 1e-4).all()


def test_a_group_needs_the_identity() -> None:
    with pytest.raises(OptionError, match="identity"):
        error(of(0, 0, 0)[None], of(0, 0, 0)[None], turns((0, 0, 1), 2)[1:])


def test_scores() -> None:
    true = torch.zeros(5, 3)
    predicted = torch.zeros(5, 3)
    predicted[:, 0] = torch.tensor([2.0, 9.0, 29.0, 31.0, 180.0]) * degree
    found = pose_score(predicted, true)
    assert (found.acc_pi_6, found.acc_pi_18) == (60.0, 40.0)
    assert found.median == pytest.approx(29.0, abs=1e-4)
    half = pose_score(predicted, true, turns((0, 0, 1), 2))
    assert half.acc_pi_6 == 80.0
    with pytest.raises(OptionError, match="none"):
        pose_score(torch.zeros(0, 3), torch.zeros(0, 3))
