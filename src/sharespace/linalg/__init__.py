"""Tensors in, tensors out: the linear algebra of many low-rank updates (docs/method.md).

No files, no modules of a network, no names of tasks. Everything works on factors; no n x d matrix
is formed. To be read in this order: ``updates`` (the canonical form and cores), ``truncated``
(leading singular vectors), ``problem`` and ``joint`` (bases of the method joint), ``dimension``
(how many directions), ``frames`` (merges and errors). ``precision`` decides which dtype computes.

Rate allocation shares out a byte budget among layers and tasks. ``task_options`` works inside one
layer, or one group of its tasks: what each task may take of two bases, and what all of them choose
at one price of a byte. ``allocate`` turns these choices into the options that a whole layer offers,
splits the budget among the layers, and finds the bases and the choices of the option that a layer
was given.

Layers that do not fit in memory: ``factor_chunks`` passes over their factors, ``compress`` finds
frames and expresses all tasks in them.
"""
