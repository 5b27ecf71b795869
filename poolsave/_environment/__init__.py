"""Django in a fresh process, and the project's settings."""
