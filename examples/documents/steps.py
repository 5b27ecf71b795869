"""The operation of on_dask.py: in a module and not in the script, so that the workers of a cluster find it."""

from poolsave import pooled_operation


@pooled_operation(transaction="chunk", chunksize=100, keep="failures")
def backfill(document):
    document.save()
