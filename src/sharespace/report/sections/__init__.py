"""The parts of a report's page, one file each: ``Facts`` in, markup out."""
