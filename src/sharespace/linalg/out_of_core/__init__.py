"""Joint bases of more updates than fit in memory, in a few passes over their files."""
