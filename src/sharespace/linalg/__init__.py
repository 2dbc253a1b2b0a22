"""Tensors in, tensors out: the linear algebra of many low-rank updates.

No files, no modules, no names of tasks. Everything works on factors; no n x d matrix is formed.
"""
