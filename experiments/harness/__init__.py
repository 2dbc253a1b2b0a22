"""What every experiment does alike: it is run, tuned and drawn by the stages of this package.

An experiment's folder holds its data, its model and its numbers (``experiment.py``, an
``Experiment``), and what its tables and claims have of their own (``report.py``, a ``Report``).
"""
