"""The code that runs beside the user's function: in a worker process, a thread, or the caller."""
