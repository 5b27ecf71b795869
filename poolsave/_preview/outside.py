"""Catches mail and tasks of the samples: they are counted, and neither sent nor enqueued.

The classes of backends are shared by all threads. So what is put in their place asks, by a context variable, whether it
is called from a sample, and else does what it always did. A thread that a function starts has a context of its own.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.core.mail.backends.base import BaseEmailBackend
from django.utils import timezone
from django.utils.crypto import get_random_string

from .replacing import replaced


@dataclass
class Caught:
    """What the samples would have sent."""

    mail: int = 0
    tasks: int = 0


_current: ContextVar[Caught | None] = ContextVar("poolsave_caught", default=None)
LOOK_UP_BACKENDS = ("django.core.mail", "django.core.mail.handler")
"""Modules whose `import_string` finds the class of a mail backend; the second one is there from Django 6.1."""


@contextmanager
def catch_mail_and_tasks() -> Iterator[Caught]:
    """Catch what this thread sends in this block."""
    caught = Caught()
    with _replacements:
        token = _current.set(caught)
        try:
            yield caught
        finally:
            _current.reset(token)


class CountingBackend(BaseEmailBackend):
    """Counts messages. It takes the options of any backend, and connects to nothing."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        super().__init__()

    def send_messages(self, email_messages: Iterable[Any]) -> int:
        caught = _current.get()
        return 0 if caught is None else _count_mail(caught, self, email_messages)


class _Replacements:
    """In place while at least one thread makes a dry run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._undo = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._replace_mail()
                if find_spec("django.tasks") is not None:
                    self._replace_tasks()

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._undo.close()

    def _replace_mail(self) -> None:
        for name in filter(find_spec, LOOK_UP_BACKENDS):
            module = import_module(name)
            self._undo.enter_context(replaced(module, "import_string", _counting_instead(module.import_string)))
        for backend in _subclasses(BaseEmailBackend):  # instances that were made before
            if backend is not CountingBackend:
                self._replace_method(backend, "send_messages", _count_mail)

    def _replace_tasks(self) -> None:
        task, base = (
            import_module("django.tasks.base").Task,
            import_module("django.tasks.backends.base").BaseTaskBackend,
        )
        for kind in (task, *_subclasses(task)):
            self._replace_method(kind, "enqueue", _count_task)
            self._replace_method(kind, "aenqueue", _acount_task)
        for kind in _subclasses(base):
            self._replace_method(kind, "enqueue", _count_enqueued)
            self._replace_method(kind, "aenqueue", _acount_enqueued)

    def _replace_method(self, kind: type, name: str, instead: Callable[..., Any]) -> None:
        if name in vars(kind):
            self._undo.enter_context(replaced(kind, name, _unless_sampling(vars(kind)[name], instead)))


_replacements = _Replacements()


def _subclasses(kind: type) -> set[type]:
    direct: list[type] = kind.__subclasses__()
    return {*direct, *(each for subclass in direct for each in _subclasses(subclass))}


def _counting_instead(original: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda path: original(path) if _current.get() is None else CountingBackend


def _unless_sampling(original: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        caught = _current.get()
        return original(self, *args, **kwargs) if caught is None else instead(caught, self, *args, **kwargs)

    return method


def _count_mail(caught: Caught, _backend: Any, email_messages: Iterable[Any]) -> int:
    sent = [message for message in email_messages or () if message.recipients()]
    for message in sent:
        message.message()  # raises what a backend would raise of a header with a line break in it
    caught.mail += len(sent)
    return len(sent)


def _count_task(caught: Caught, task: Any, *args: Any, **kwargs: Any) -> Any:
    return _count_enqueued(caught, task.get_backend(), task, args, kwargs)


async def _acount_task(caught: Caught, task: Any, *args: Any, **kwargs: Any) -> Any:
    return _count_task(caught, task, *args, **kwargs)


def _count_enqueued(caught: Caught, backend: Any, task: Any, args: Any, kwargs: Any) -> Any:
    backend.validate_task(task)
    base = import_module("django.tasks.base")
    result = base.TaskResult(
        task=task,
        id=get_random_string(32),
        status=base.TaskResultStatus.READY,
        enqueued_at=timezone.now(),
        started_at=None,
        last_attempted_at=None,
        finished_at=None,
        args=args,
        kwargs=kwargs,
        backend=backend.alias,
        errors=[],
        worker_ids=[],
    )
    caught.tasks += 1
    return result


async def _acount_enqueued(caught: Caught, backend: Any, task: Any, args: Any, kwargs: Any) -> Any:
    return _count_enqueued(caught, backend, task, args, kwargs)
