"""Frozen values and the verbs of the method on them: initialise, project, merge, reconstruct,
union, fidelity, plan. No files here."""
