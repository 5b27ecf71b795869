"""Products, and how customers find them."""
