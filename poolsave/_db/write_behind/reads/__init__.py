"""SELECTs that need less of the server: some send no rows before them, and some are not sent again."""
