"""A run from its first check to its report, in the caller's process."""
