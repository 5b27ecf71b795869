"""The app of examples/backfill_table.py: workers that are not forked find models only in installed apps."""
