"""Shapes of adapted modules, and the fingerprint of a set of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "conv"]


@dataclass(frozen=True)
class ModuleShape:
    """The weight of one adapted module of the base model, seen as an n x d matrix."""

    out_features: int
    """n: output features (convolution: output channels)."""
    in_features: int
    """d: input features (convolution: input channels times the kernel's cells)."""
    kind: Kind = "linear"
    """``"conv"`` when the weight has a kernel; Conv1D of transformers is ``"linear"``."""
    kernel: tuple[int, ...] = ()
    """Kernel size, for example ``(3, 3)``; empty for a linear module."""

    @property
    def sides(self) -> int:
        """n + d: numbers in one pair of directions."""
        return self.out_features + self.in_features

    @property
    def in_channels(self) -> int:
        """Input channels of a convolution; input features of a linear module."""
        return self.in_features // math.prod(self.kernel)

    def __str__(self) -> str:
        kernel = f" kernel {'x'.join(map(str, self.kernel))}" if self.kernel else ""
        return f"{self.kind} {self.out_features}x{self.in_features}{kernel}"


def fingerprint(shapes: Mapping[str, ModuleShape]) -> str:
    """SHA-256 (hex) over the sorted names and shapes of the adapted modules.

    Two Share models of one base with the same adapted modules have the same fingerprint.
    """
    digest = hashlib.sha256()
    for name in sorted(shapes):
        digest.update(f"{name}\t{shapes[name]}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
