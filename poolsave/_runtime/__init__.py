"""The interpreter itself, below Django and every database: forked children, and exceptions of any class."""
