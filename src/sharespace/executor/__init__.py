"""Where independent pieces of work run: here, one after the other, or on a cluster.

``Local`` is the default and needs nothing. ``Dask`` runs the pieces in other processes or on other
machines, with the same results bit for bit (docs/howto/cluster.md).
"""

from sharespace.executor.base import LOCAL, Executor, Local
from sharespace.executor.dask import Dask

__all__ = ["LOCAL", "Dask", "Executor", "Local"]
