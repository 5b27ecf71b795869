"""For tests of code that uses poolsave."""

from __future__ import annotations

from django.test.utils import TestContextDecorator

from .options import force_inline

__all__ = ["serial_saves"]


class serial_saves(TestContextDecorator):  # noqa: N801  a decorator is used like a function
    """Run every pool inline: in the calling thread, on its connection, and inside its transaction.

    A context manager, and a decorator for test functions and `unittest` classes. It overrides every option, the
    environment and the settings: the executor is "serial" in all threads, and a `timeout` is ignored, since it cannot
    be enforced there. What a function saves is visible to the test. In a `TestCase` it is rolled back with the test.

    With pytest, use the fixture of the same name, without an import.

    Example:
        >>> from poolsave import pooled_operation
        >>> from poolsave.testing import serial_saves
        >>> @pooled_operation(workers=4, transaction=None)
        ... def double(number):
        ...     return 2 * number
        >>> with serial_saves():
        ...     double.map([1, 2, 3]).values
        [2, 4, 6]
    """

    def __init__(self) -> None:
        super().__init__()

    def enable(self) -> None:
        """Switch it on."""
        force_inline(on=True)

    def disable(self) -> None:
        """Switch it off; of several that are nested, the last one does."""
        force_inline(on=False)
