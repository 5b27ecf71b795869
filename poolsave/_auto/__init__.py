"""executor="auto": in the caller's thread first, in processes when that pays."""
