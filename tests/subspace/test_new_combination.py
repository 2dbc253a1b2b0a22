"""A combination method from outside of the package: one function under one decorator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from builders import MODULE, build, stored_dense, strangers
from sharespace import Share
from sharespace.errors import OptionError
from sharespace.subspace.combine import combination_names, register_combination


@register_combination("iso_c", paper="https://arxiv.org/abs/2502.04959")
def iso_c(cores: Tensor, scale: float = 1.0) -> Tensor:
    """Isotropic merging: the sum, with the mean of its singular values for each."""
    u, s, vh = torch.linalg.svd(cores.sum(0), full_matrices=False)
    isotropic: Tensor = scale * s.mean() * (u @ vh)
    return isotropic


def test_it_is_used_by_its_name_with_its_options() -> None:
    share = Share(build(strangers(3), 6))
    both = share.combine({"t0": 1, "t1": 0.5}, name="both", method="iso_c", scale=2)
    found = stored_dense(both.model, "both")
    dense = stored_dense(share.model, "t0") + 0.5 * stored_dense(share.model, "t1")
    values = torch.linalg.svdvals(dense)
    rank = int((values > 1e-5 * values[0]).sum())
    wanted = torch.full((rank,), 2 * float(values.sum()) / rank).double()
    torch.testing.assert_close(torch.linalg.svdvals(found)[:rank], wanted, rtol=1e-4, atol=1e-5)
    assert both.task("both").ranks == {MODULE: rank}
    assert both.task("both").provenance.source == "iso_c t0:1.0+t1:0.5"


def test_its_name_is_taken() -> None:
    assert "iso_c" in combination_names()
    register_combination("iso_c", paper="https://arxiv.org/abs/2502.04959")(iso_c)
    with pytest.raises(OptionError, match="iso_c has that name"):

        @register_combination("iso_c", paper="")
        def other(cores: Tensor) -> Tensor:
            return cores[0]
