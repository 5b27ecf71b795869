"""In a module, and not in the script, so that the workers of a cluster find it."""

from __future__ import annotations

from documents.models import Document
from poolsave import pooled_operation


@pooled_operation(transaction="chunk", chunksize=100, keep="failures")
def backfill(document: Document) -> None:
    document.save()
