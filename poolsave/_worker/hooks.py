"""The user's hooks around the start of worker processes, for resources that poolsave does not know."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from .._runtime.foreign_exceptions import text_of
from ..errors import InvalidOption

Hook: TypeAlias = Callable[[], object]

_already_run: set[tuple[int, bytes]] = set()
"""Hooks that have run in this process. With the process id, since a fork inherits the set. A foreign executor opens a
session per task, but hooks run once per process."""


class Hooks:
    """The options `before_fork` and `after_fork`. Pickled, it holds bytes only, since it is unpickled before Django is
    set up."""

    def __init__(self, before_fork: Sequence[Hook] = (), after_fork: Sequence[Hook] = ()) -> None:
        self._before = tuple(before_fork)
        self._after = tuple(after_fork)
        self._pickled = b""

    def __getstate__(self) -> dict[str, Any]:
        return {"_before": (), "_after": (), "_pickled": _pickle_hooks(self._after) if self._after else self._pickled}

    def run_before(self) -> None:
        """In the caller, right before workers are started."""
        for hook in self._before:
            hook()

    def run_after(self) -> None:
        """In a worker process, once."""
        key = (os.getpid(), self._pickled)
        if self._pickled and key in _already_run:
            return
        self.load()
        for hook in self._after:
            hook()
        _already_run.add(key)

    def load(self) -> None:
        """In a worker process: unpickle the hooks, which imports their modules."""
        if self._pickled and not self._after:
            self._after = pickle.loads(self._pickled)


def _pickle_hooks(hooks: Sequence[Hook]) -> bytes:
    for hook in hooks:
        try:
            pickle.dumps(hook, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # whatever the hook's own pickling raises
            raise InvalidOption(
                "after_fork",
                hook,
                f"workers that are not forked find it by its name in a module ({text_of(error)}): "
                "define a function at the top of one",
            ) from error
    return pickle.dumps(hooks, pickle.HIGHEST_PROTOCOL)
