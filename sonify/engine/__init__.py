"""Units of work, the files they become, and the commits that say so."""
