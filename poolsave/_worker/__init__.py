"""What runs where the objects run: in a process, a thread, or the caller."""
