"""`executor="auto"`: measure the first objects in the caller's thread, decide, switch to a pool and back."""
