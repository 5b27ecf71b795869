"""What users do around the start of worker processes, for things that poolsave cannot know."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from .._runtime.foreign_exceptions import text_of
from ..errors import InvalidOption

Hook: TypeAlias = Callable[[], object]

_done: set[tuple[int, bytes]] = set()
"""Hooks that have run here, by process id, since a fork inherits this. The sessions of a foreign executor are opened
for every task."""


class Hooks:
    """The options `before_fork` and `after_fork`. Pickled, it holds bytes only, as everything does that is sent before
    Django is up."""

    def __init__(self, before_fork: Sequence[Hook] = (), after_fork: Sequence[Hook] = ()) -> None:
        self._before = tuple(before_fork)
        self._after = tuple(after_fork)
        self._packed = b""

    def __getstate__(self) -> dict[str, Any]:
        return {"_before": (), "_after": (), "_packed": _packed(self._after) if self._after else self._packed}

    def run_before(self) -> None:
        """In the caller, right before workers are started."""
        for hook in self._before:
            hook()

    def run_after(self) -> None:
        """In a worker process, once."""
        done = (os.getpid(), self._packed)
        if self._packed and done in _done:
            return
        self.load()
        for hook in self._after:
            hook()
        _done.add(done)

    def load(self) -> None:
        """In a worker process: find the hooks, and import their modules."""
        if self._packed and not self._after:
            self._after = pickle.loads(self._packed)


def _packed(hooks: Sequence[Hook]) -> bytes:
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
