"""The control of Share's subspace: a random one of the same dimensions."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from sharespace.compare.bench import Workbench
from sharespace.compare.compared import compared_method
from sharespace.compare.job import Outcome, StoredBytes
from sharespace.compare.methods.share_stream import learn_in_subspace
from sharespace.share import Share
from sharespace.stream.measures import ScoreMatrix
from sharespace.subspace.adapter import BaseModel
from sharespace.subspace.fidelity import sizes
from sharespace.subspace.layer import LayerSubspace
from sharespace.subspace.state import BuildSettings, ShareModel
from sharespace.tuner import release


@compared_method("random_basis", short="random", trains="coefficients")
def random_basis(bench: Workbench) -> Outcome:
    """Coefficients trained in random orthonormal bases of the same k and p; no stream, no merge.

    Temporary directions that are trained are left out: they would put what the tasks learn into the
    basis. Those of the form "core" are chosen and frozen, as for Share; they are never merged, so
    each task stores its own. The basis is counted as stored, though its seed would do.
    """
    share = Share(random_model(bench))
    method = replace(bench.settings.method, start="zero")
    if method.form == "factors":
        method = replace(method, phi=0)
    scores, trainable, fits = {}, {}, []
    coefficients = temporary = 0
    for name in bench.tasks:
        adapted = learn_in_subspace(bench, share, name, method)
        coefficients += _bytes_of(adapted.model, "_coefficients.")
        temporary += _bytes_of(adapted.model, "_temporary.")
        scores[name] = bench.score(name, adapted.model)
        release(adapted.model)
        trainable[name] = adapted.trainable.coefficients
        fits.append(adapted.fit)
    basis = sizes(share.model).basis
    stored = StoredBytes(adapters=temporary, basis=basis, coefficients=coefficients)
    outcome = bench.outcome(ScoreMatrix.of_one_step(scores), trainable, fits, stored)
    return replace(outcome, paper_count=fmean(trainable.values()))


def random_model(bench: Workbench) -> ShareModel:
    """A Share model without tasks: random orthonormal bases (Haar) of dimension min(k, side)."""
    shapes = bench.target_shapes()
    generator = torch.Generator().manual_seed(bench.settings.seed)
    k = bench.settings.k
    layers = {
        module: LayerSubspace(
            shape,
            _orthonormal(shape.out_features, k, generator),
            _orthonormal(shape.in_features, k, generator),
            cap=(min(k, shape.out_features), min(k, shape.in_features)),
        )
        for module, shape in shapes.items()
    }
    return ShareModel(BaseModel(), BuildSettings(cap=k), torch.float32, layers, {})


def _orthonormal(side: int, k: int, generator: torch.Generator) -> Tensor:
    """float32 [side, min(k, side)]: orthonormal columns, uniformly at random."""
    draw = torch.randn(side, min(k, side), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(draw)
    # QR alone is not uniform over the rotations: it is once the signs of R are taken along.
    return torch.mul(q, torch.diagonal(r).sign()).float()


def _bytes_of(model: Any, kind: str) -> int:
    """Bytes of a task's coefficients or temporary directions, trained or not.

    The p x p core of the form "core" is none: it is multiplied into the coefficients.
    """
    return sum(p.numel() * p.element_size() for n, p in model.named_parameters() if kind in n)
