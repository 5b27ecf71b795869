"""Several operations, one after the other."""
