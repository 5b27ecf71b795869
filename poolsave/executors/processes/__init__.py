"""Worker processes with a private pair of pipes each."""

from .executor import ProcessExecutor

__all__ = ["ProcessExecutor"]
