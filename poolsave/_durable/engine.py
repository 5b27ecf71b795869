"""The engine of a durable run: the ledger says what has ended, and the caller records what no worker has.

    source -> chunk, placed between two keys -> worker: work, and its row in the ledger, in one transaction
                                                  |
    failures, ranges without a row <- caller <- reply, or a death: what was committed is asked of the ledger

A worker that dies costs nothing but time: what its transaction has not committed runs again, and LOST does not exist
while the ledger can be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._engine.chunking import Chunk
from .._engine.crashes import MAX_CRASHES_BEFORE_START, error_of_finished, error_of_running
from .._engine.engine import Engine
from .._engine.throttling import ThrottleMeter
from .._reports.batches import OutcomeBatch, unanswered_batch
from .._reports.durable import DurableRun
from .._runtime.foreign_exceptions import is_a, repr_of
from .._worker.job import WorkerJob
from .._worker.replies import Reply
from ..errors import InvalidOperation, LeaseLost, RowGone, ValueLost
from ..executors import Broken, Died, Event, Executor
from ..options import Options
from ..outcomes import Outcome, Status
from .bookkeeping import Bookkeeping, Stop
from .chunks import Ended
from .deaths import as_gone, as_saved, blamed_object, callbacks_lost, is_unsettled
from .recorder import FIRST_NOTE, HAS_CALLBACKS, LedgerRecorderSpec, LedgerUnwritable, PlacedPayload, schema_of
from .session import Session
from .sources import Places

SEQUENCES = (1 << 64) - 1
"""The part of a note that is a sequence."""


class DurableEngine(Engine):
    """Runs what is left of a durable run."""

    def __init__(  # noqa: PLR0913  those of an engine, and two
        self, executor: Executor, job: WorkerJob, options: Options, source: Any, session: Session, *, records: bool
    ) -> None:
        """`records`: whether workers record what they commit. Else the caller does, and objects may run twice."""
        super().__init__(executor, job, options, source)
        self._durable_job = job
        self._durable_source = source
        self._session = session
        self._records = records
        self._book = Bookkeeping(session, merges=executor.at_most_once, meter=self.meter)
        self._places = Places()
        self._recorded: set[int] = set()
        """Indices of failures that a worker has recorded."""
        self._again: set[int] = set()
        """Indices of objects that were answered, and run again: their COMMIT did not happen."""
        self._unsettled: list[tuple[Chunk, BaseException]] = []
        """Chunks that the executor has lost, and why."""
        self._unrecorded: set[int] = set()
        """Indices of objects whose outcome the ledger is not told."""
        self._code = ""
        self._noticed: Stop | Exception | None = None
        self._closed = False
        source.tick = self._tick

    @property
    def run(self) -> DurableRun:
        """What the report says of the run."""
        return self._book.state

    def start(self) -> None:
        """Take the lease, look at what has ended, and start the workers.

        Raises:
            RunConflict: if the run cannot go on.
        """
        ranges = self._book.open(self._session.open(self._durable_source.bounds))
        if self._book.closed:
            self._source.give_up()  # it is finished
            return
        if self._session.retry is not None:
            self._durable_job.sparse = True
            self._durable_source.open_failures(*self._book.waiting(self._session.retry))
        else:
            self._durable_source.open(ranges, self._session.bounds)
        if self.meter is not None:
            self.meter.follow(self._session.followed())
        # Before the workers: a fork inherits the job as it is then, and others get it pickled.
        self._durable_job.recorder = LedgerRecorderSpec(
            alias=self._session.alias,
            name=self._session.spec.name,
            run_id=self._session.run_id,
            generation=self._session.generation,
            records=self._records,
            digests=self._session.spec.key is not None,
            prepares=not self._durable_job.inline,
            schema=schema_of(self._session.alias),
        )
        super().start()

    def step(self, *, undelivered: int = 0, max_lead: int | None = None) -> list[OutcomeBatch]:
        """See `Engine.step`. Besides, it writes what is due to the ledger, and obeys what stands there."""
        self._keep_book()
        return super().step(undelivered=undelivered, max_lead=max_lead)

    def _wait(self, timeout: float | None) -> Sequence[Event]:
        until = self._book.seconds_until_due
        return super()._wait(until if timeout is None or until is None else min(timeout, until))

    def _tick(self) -> None:
        """Write what is due, and note what is asked for. Called while the input's own code is running, too."""
        try:
            self._noticed = self._noticed or self._book.keep(self._horizon)
        except Exception as error:  # of the database, or LeaseLost: this session can record nothing more
            self._noticed = error

    def _keep_book(self) -> None:
        if self._noticed is None:
            self._tick()
        asked, self._noticed = self._noticed, None
        if isinstance(asked, Exception):
            self._fail(asked)
        elif asked is not None:
            self._code = self._code or asked.code
            self.halt(asked.reason)
        elif self.meter is not None and self._options.patience is not None:
            self._lose_patience(self.meter, self._options.patience)

    def _lose_patience(self, meter: ThrottleMeter, patience: float) -> None:
        if meter.held >= patience and self.stopped is None:
            self._code = self._code or "throttle"
            self.halt(f"throttles let nothing start for {patience:g} s (patience): {meter.reason}")

    def _fail(self, error: BaseException) -> None:
        self._book.give_up()  # `_end` pauses the run, unless another session has it
        self._end_with(error, f"the ledger cannot be written: {error}")

    def _horizon(self) -> int | None:
        """The least sequence that a transaction in flight can have; None: there is none."""
        index = self._first_in_flight()
        return None if index is None else self._places.at(index)[0].sequence

    def _first_in_flight(self) -> int | None:
        lost = (chunk for chunk, _error in self._unsettled)
        return min((chunk.index for chunk in (*self._tasks.values(), *self._requeued, *lost)), default=None)

    def halt(self, reason: str) -> None:
        """See `Engine.halt`."""
        if self.stopped is None and not self._code:
            self._code = "signal" if reason == "interrupted" else "error"
        super().halt(reason)

    def _stop_for_failures(self) -> None:
        self._code = self._code or "failures"
        super()._stop_for_failures()

    def _gather(self) -> Chunk | None:
        chunk = super()._gather()
        if chunk is not None:
            if self._places.are_many:
                index = self._first_in_flight()
                self._places.forget_before(chunk.index if index is None else index)
            self._places.add(chunk.index, self._durable_source.place)
        self._take_tails()
        return chunk

    def _take_tails(self) -> None:
        while self._durable_source.tails:
            self._book.add_range(self._durable_source.tails.pop())

    def _submit(self, chunk: Chunk, payload: Any) -> None:
        placed = PlacedPayload(*self._places.part(chunk.index, len(chunk.objects)), payload)
        super()._submit(chunk, placed if self._executor.shares_memory else placed.to_bytes())

    # What an answer means.

    def _batch_of(self, chunk: Chunk, reply: Reply) -> OutcomeBatch:
        first = chunk.index + reply.offset
        for offset, detail in reply.details.items():
            if detail.recorded:
                self._recorded.add(first + offset)
        if self._records and any(map(is_unsettled, reply.details.values())):
            self._settle_reply(chunk, reply)
        return super()._batch_of(chunk, reply)

    def _settle_reply(self, chunk: Chunk, reply: Reply) -> None:
        ended = self._ask(chunk)
        if ended is None:
            return
        for offset, detail in [*reply.details.items()]:
            index, at = chunk.index + reply.offset + offset, reply.offset + offset
            if at in ended.saved:
                if detail.status is not Status.SUCCEEDED:
                    reply.details[offset] = as_saved(detail, index)
            elif at in ended.failed or at in ended.gone:
                self._recorded.add(index)
                if at in ended.gone:
                    reply.details[offset] = as_gone(detail, self._row_gone(index))
            elif is_unsettled(detail) or (detail.status is Status.FAILED and not is_a(detail.error, LeaseLost)):
                self._again.add(index)
                self._requeued.append(Chunk(index, [chunk.objects[at]]))

    def _ask(self, chunk: Chunk) -> Ended | None:
        try:
            return self._book.ended(self._places.part(chunk.index, len(chunk.objects)))
        except Exception as error:  # of the database, or LeaseLost
            self._fail(error)
            return None

    def _resolve_crash(self, chunk: Chunk, event: Died) -> None:
        ended = self._ask(chunk) if self._records else None
        if ended is None:
            super()._resolve_crash(chunk, event)
            return
        left: list[int] = []
        for offset in range(chunk.answered, len(chunk.objects)):
            if offset in ended.saved:
                self._add_saved(chunk, offset, event)
            elif offset in ended.failed:
                self._recorded.add(chunk.index + offset)
                self._add_failed(chunk, offset, error_of_finished(event))
            elif offset in ended.gone:
                self._add_gone(chunk, offset)
            else:
                left.append(offset)
        self._run_again(chunk, left, event)

    def _add_saved(self, chunk: Chunk, offset: int, event: Died) -> None:
        index = chunk.index + offset
        sequence = (event.note & SEQUENCES) - FIRST_NOTE
        error = ValueLost(index)
        error.__cause__ = error_of_finished(event)
        if event.note & HAS_CALLBACKS and self._places.part(index, 1).sequence >= sequence:
            error = callbacks_lost(index, error.__cause__)
        self._add(unanswered_batch(index, [chunk.objects[offset]], Status.SUCCEEDED, error, attempts=1))

    def _add_failed(self, chunk: Chunk, offset: int, error: BaseException) -> None:
        item = chunk.objects[offset]
        self._add(unanswered_batch(chunk.index + offset, [item], Status.FAILED, error, attempts=1))

    def _add_gone(self, chunk: Chunk, offset: int) -> None:
        index = chunk.index + offset
        self._recorded.add(index)
        self._add(unanswered_batch(index, [chunk.objects[offset]], Status.SKIPPED, self._row_gone(index), attempts=0))

    def _row_gone(self, index: int) -> RowGone:
        return RowGone(self._durable_source.label, self._places.part(index, 1).keys[0])

    def _run_again(self, chunk: Chunk, left: list[int], event: Died) -> None:
        """Have the rest run again. An object with which worker after worker dies fails."""
        blamed = blamed_object(event, left) if self._executor.blames_exactly else None
        crashes = chunk.crashes + 1
        if blamed is not None and (event.overdue or (crashes >= MAX_CRASHES_BEFORE_START and len(chunk.objects) == 1)):
            self._add_failed(chunk, blamed, error_of_running(event, chunk.objects[blamed], self._options.timeout))
            left.remove(blamed)
            self._requeued += chunk.parts(left)
            return
        for part in chunk.parts(left, alone=blamed):
            is_suspect = blamed is None or part.index == chunk.index + blamed
            part.crashes = crashes if is_suspect else 0
            self._requeue_suspect(part, event) if blamed is None else self._requeued.append(part)

    def _requeue_suspect(self, part: Chunk, event: Died) -> None:
        """Have a part run again of which it is not known what the worker was at."""
        if part.crashes < MAX_CRASHES_BEFORE_START:
            self._requeued.append(part)
        elif len(part.objects) > 1 and not self._executor.blames_exactly:
            middle = len(part.objects) // 2
            self._requeued.append(Chunk(part.index, part.objects[:middle]))
            self._requeued.append(Chunk(part.index + middle, part.objects[middle:]))
        else:
            for offset, item in enumerate(part.objects):
                self._add_failed(part, offset, error_of_running(event, item, self._options.timeout))

    def _broken(self, event: Broken) -> None:
        if not event.begun or not self._records:
            super()._broken(event)
            return
        # Its worker may be at it still. What became of it is asked when nothing of it can commit any more.
        self._unsettled.append((self._tasks.pop(event.task), event.error))
        if self.stopped is None:
            self.fatal = event.error if self.fatal is None else self.fatal
        self.halt(f"the executor lost a chunk: {repr_of(event.error)}")

    def _settle_broken(self) -> None:
        try:
            self._book.renew_lease()
        except Exception as error:  # of the database, or LeaseLost
            self._fail(error)
        for chunk, why in self._unsettled:
            ended = None if self._book.closed else self._ask(chunk)
            for offset in range(chunk.answered, len(chunk.objects)):
                self._settle_object(chunk, offset, ended, why)
        self._unsettled.clear()

    def _settle_object(self, chunk: Chunk, offset: int, ended: Ended | None, error: BaseException) -> None:
        index, item, status, reason = chunk.index + offset, chunk.objects[offset], Status.LOST, error
        if ended is not None:
            status = Status.SKIPPED  # nothing is left of it, and the next session runs it
            if offset in ended.saved:
                status, reason = Status.SUCCEEDED, ValueLost(index)
                reason.__cause__ = error
            elif offset in ended.failed:
                status = Status.FAILED
                self._recorded.add(index)
            elif offset in ended.gone:
                reason = self._row_gone(index)
                self._recorded.add(index)
        else:
            self._unrecorded.add(index)
        self._add(unanswered_batch(index, [item], status, reason, attempts=1))

    # What the ledger is told.

    def _add(self, batch: OutcomeBatch) -> None:
        for part in self._without_again(batch):
            for outcome in part.notable.values():
                if is_a(outcome.error, LeaseLost):
                    self._lose_lease(outcome.error)
            self._note_ended(part)
            super()._add(part)

    def _without_again(self, batch: OutcomeBatch) -> list[OutcomeBatch]:
        indices = range(batch.first, batch.first + len(batch.values))
        if not self._again or self._again.isdisjoint(indices):
            return [batch]
        kept = [batch.single(offset, index) for offset, index in enumerate(indices) if index not in self._again]
        self._again.difference_update(indices)
        return kept

    def _lose_lease(self, error: LeaseLost) -> None:
        if not self._book.closed:
            self._fail(InvalidOperation(str(error)) if is_a(error, LedgerUnwritable) else self._session.lost())

    def _note_ended(self, batch: OutcomeBatch) -> None:
        if not self._records:
            self._note_all(batch)
            return
        self._book.count(done=len(batch.values) - len(batch.notable), rows=len(batch.values))
        for outcome in batch.notable.values():
            if outcome.index in self._unrecorded:
                continue
            self._note(outcome, recorded=outcome.ok or outcome.index in self._recorded)
            self._recorded.discard(outcome.index)

    def _note(self, outcome: Outcome[Any], *, recorded: bool) -> None:
        if not (outcome.status is Status.SKIPPED and not is_a(outcome.error, RowGone)):
            self._book.add(self._places.part(outcome.index, 1), outcome, recorded=recorded)

    def _note_all(self, batch: OutcomeBatch) -> None:
        for outcome in batch.outcomes(with_items=False):
            self._note(outcome, recorded=False)

    # The end.

    def lose_rest(self) -> list[OutcomeBatch]:
        """See `Engine.lose_rest`. The ledger gets its last word."""
        batches = super().lose_rest()
        if self._unsettled:
            self._settle_broken()
            batches += self._take_ready()
        if not self._closed:
            self._closed = True
            self._end()
        return batches

    def _end(self) -> None:
        error = self.fatal or self._source_error()
        code = self._code or ("" if error is None else "error")
        reason = (self.stopped or "") if error is None else f"{type(error).__name__}: {error}"
        try:
            self._take_tails()  # of a session without any object
            input_ended = self.stopped is None and error is None
            self._book.end(code, reason, input_ended=input_ended, count_later=self._durable_source.count_later)
        except Exception as ledger_error:  # of the database, or LeaseLost
            self._book.give_up()
            self.fatal = ledger_error if self.fatal is None else self.fatal
            reason = reason or f"{type(ledger_error).__name__}: {ledger_error}"
        if self._session.is_open:
            self._book.leave(reason)
        self._session.release()

    def _source_error(self) -> BaseException | None:
        error: BaseException | None = self._durable_source.error
        return error
