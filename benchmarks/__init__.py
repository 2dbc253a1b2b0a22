"""Measurements beside the peers; every script runs as ``python -m benchmarks.NAME``."""
