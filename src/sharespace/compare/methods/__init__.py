"""The compared methods, one a file."""
