"""The command of durable runs."""
