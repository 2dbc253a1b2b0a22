"""torch modules for learning in the subspace."""

from sharespace.nn.layer import SubspaceLinear
from sharespace.nn.modules import applied, linear_module, replace_modules

__all__ = ["SubspaceLinear", "applied", "linear_module", "replace_modules"]
