"""Feeds chunks to an executor and turns its events into outcomes. Knows no Django."""
