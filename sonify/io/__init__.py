"""Reading and writing: places, whole files, commits, archives, tables."""
