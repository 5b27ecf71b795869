"""Durable runs: what the caller and workers do so that a run can be stopped anywhere and go on exactly there."""
