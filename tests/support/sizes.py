"""Runs whose number of workers a test says, in place of the policy, while they go on."""

from poolsave._engine.sizing import WorkerSizing


class Sizes:
    """Set `wanted`: the run has so many workers as soon as they are set up. `executor` is that of the run."""

    def __init__(self, monkeypatch):
        self.wanted = 1
        self.executor = None
        self.refused = 0
        monkeypatch.setattr(WorkerSizing, "maybe_resize", lambda sizing, **_figures: self._resize(sizing._executor))
        monkeypatch.setattr(WorkerSizing, "refused", lambda _sizing: self._refuse())

    def _resize(self, executor):
        self.executor = executor
        if self.wanted is not None and executor.workers + executor.joining != self.wanted:
            executor.resize(self.wanted)

    def _refuse(self):
        self.refused += 1
        self.wanted = None  # one attempt is enough
