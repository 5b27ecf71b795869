"""The marks: one number per object that says how far a worker is with it.

Workers write them. A process executor keeps them in memory that outlives the worker and passes them on with `Died`.
`_engine.crashes` decides what they mean.
"""

from __future__ import annotations

NEW = 0
"""Not started."""
RUNNING = 1
"""In the function, or in its transaction."""
UNKNOWN = 2
"""It may or may not be committed. For executors that lose the marks together with the worker."""
COMMITTING = UNKNOWN
"""In its COMMIT."""
COMMITTED = 3
"""Its COMMIT has returned, or with `transaction=None` the function."""
PENDING = 4
"""It has ended inside a transaction that is still open, so it is rolled back if the worker dies."""
HAD_FAILED = 5
"""It has failed and was rolled back. In a worker with several stages it waits for the other objects of its chunk."""
WAS_LOST = 6
"""Like HAD_FAILED, but it is unknown whether it was committed."""

MARKS_PER_STAGE = 8
"""In a worker with several stages, a mark is `stage * MARKS_PER_STAGE` plus one of the marks above."""
