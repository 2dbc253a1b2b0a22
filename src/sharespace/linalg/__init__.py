"""Tensors in, tensors out: the linear algebra of many low-rank updates (docs/method.md).

No files, no modules of a network, no names of tasks. Everything works on factors; no n x d matrix
is formed. To be read in this order: ``updates`` (the canonical form and cores), ``truncated``
(leading singular vectors), ``problem`` and ``joint`` (bases of the method joint), ``dimension``
(how many directions), ``budget`` (rate allocation), ``frames`` (merges and errors), ``out_of_core``
(layers that do not fit in memory). ``precision`` decides which dtype computes.
"""
