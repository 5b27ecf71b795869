"""The workers of a Dask cluster."""

from .executor import DaskExecutor

__all__ = ["DaskExecutor"]
