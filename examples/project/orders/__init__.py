"""Orders, which a shop system exports as CSV every night."""
