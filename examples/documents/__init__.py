"""The app of backfill_table.py, block.py and on_dask.py: documents with a fingerprint that their save() makes."""
