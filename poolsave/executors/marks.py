"""The marks by which a worker notes how far each object of its chunk is, where its own death cannot take them.

Workers write them, an executor keeps them and hands them over with `Died`, and `_engine.crashes` says what they mean.
"""

from __future__ import annotations

NEW = 0
"""Not begun."""
RUNNING = 1
"""In the function, or in its transaction."""
UNKNOWN = 2
"""It may have been committed or not, for an executor whose worker died with all its marks."""
COMMITTING = UNKNOWN
"""In its COMMIT."""
COMMITTED = 3
"""Its COMMIT has returned, or with `transaction=None` the function."""
PENDING = 4
"""It has ended inside a transaction that is still open, so that nothing of it is left if the worker dies."""
HAD_FAILED = 5
"""Rolled back; in a worker with several stages it waits for others of its chunk, and is not what the worker is at."""
WAS_LOST = 6
"""As before, but nobody knows whether it was committed."""

MARKS_PER_STAGE = 8
"""In a worker with several stages, a mark is the number of the stage times this, plus how far the object is there."""
