"""Django in a process that was started afresh, and what the project's settings say."""
