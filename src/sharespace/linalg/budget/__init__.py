"""Rate allocation: a byte budget is shared out among layers and tasks (docs/method.md).

``task_options`` works inside one layer, or one group of its tasks: what each task may take of two
bases, and what all of them choose at one price of a byte. ``allocate`` turns these choices into the
options that a whole layer offers, splits the budget among the layers, and finds the bases and the
choices of the option that a layer was given.
"""
