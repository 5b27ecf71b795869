"""The interpreter itself, below Django and every database: forked children, exceptions of any class, reprs without
passwords."""
