"""The tables of durable runs.

Workers write `Chunk` and `Failure`, in the transactions of the work that these tell of. The caller writes them for
objects of which nothing was committed, and `Run` and `Lease`. People change a Run by `control`.

No foreign key has a constraint, since checking it would lock the row of the run in each chunk.
"""

from __future__ import annotations

from django.db import models

__all__ = ["Chunk", "Failure", "Lease", "Run"]


class Run(models.Model):
    """A durable run: what it is about, how far it is, and who works on it.

    Its counters are written by the caller alone, at most once a second. They lag behind the rows of `Chunk`.
    """

    class Status(models.TextChoices):
        """What becomes of a run. Only the process that works on it sets RUNNING and those that are finished."""

        DUE = "due", "due"
        """To be started, or to go on, by `manage.py poolsave work` or a task."""
        RUNNING = "running", "running"
        PAUSING = "pausing", "pausing"
        """Someone has asked for a pause: what has begun is finished."""
        PAUSED = "paused", "paused"
        CANCELLING = "cancelling", "cancelling"
        CANCELLED = "cancelled", "cancelled"
        FINISHED = "finished", "finished"
        FINISHED_WITH_FAILURES = "finished with failures", "finished with failures"

    ACTIVE = (Status.RUNNING, Status.PAUSING, Status.CANCELLING)
    """Some caller works on it, or has died while it did."""
    ENDED = (Status.FINISHED, Status.FINISHED_WITH_FAILURES, Status.CANCELLED)

    name = models.CharField(max_length=200, unique=True)
    status = models.CharField(max_length=30, choices=Status.choices, default=Status.DUE, db_index=True)
    stop_code = models.CharField(max_length=20, blank=True)
    """Why it is paused: "operator", "signal", "failures", "throttle", "slice", "error" or "died"."""
    stop_reason = models.TextField(blank=True)
    identity = models.JSONField(default=dict)
    """What must be the same in each session: the function, its constants, and the rows. By name, as text."""
    parameters = models.JSONField(default=dict, blank=True)
    """What a registered backfill was started with: the texts that its form is given."""
    retry = models.JSONField(null=True, blank=True)
    """Which failures the next session is to try again, and nothing else; None for a session that goes on."""
    high = models.TextField(blank=True)
    """The last key, as JSON: the largest one when the run began. Empty if the input is not a queryset."""
    total = models.BigIntegerField(null=True, blank=True)
    """How many objects it had as it began, which can be an estimate."""
    done = models.BigIntegerField(default=0)
    failed = models.BigIntegerField(default=0)
    """Objects that failed when they were first tried."""
    skipped = models.BigIntegerField(default=0)
    came_later = models.BigIntegerField(null=True, blank=True)
    """Rows above `high`, counted as the run ended."""
    exactly_once = models.BooleanField(default=True)
    """False: objects may have run twice, since no row of the ledger is in the transaction of their work."""
    seconds = models.FloatField(default=0.0)
    """In all sessions."""
    rate = models.FloatField(null=True, blank=True)
    """Objects per second, lately."""
    throttle = models.TextField(blank=True)
    """Why the run is slower than it could be now, if it is."""
    started_by = models.CharField(max_length=200, blank=True)
    holder = models.CharField(max_length=300, blank=True)
    """Who works on it: the host and the process."""
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    """When the last session began."""
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-pk"]
        default_permissions = ("view", "delete")
        permissions = [
            ("start_run", "Can start runs"),
            ("control_run", "Can pause, resume and cancel runs"),
            ("retry_failures", "Can try failures again"),
        ]

    def __str__(self) -> str:
        return self.name


class Lease(models.Model):
    """Whose turn it is. A session that takes a run over raises the generation, and no chunk of an older one commits.

    Each chunk locks this row. It is not the row of the Run, so a pause need not wait for chunks.
    """

    run = models.OneToOneField(Run, models.CASCADE, primary_key=True, db_constraint=False)
    generation = models.BigIntegerField(default=0)

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.generation)


class Chunk(models.Model):
    """A range of keys that has ended: those above `low`, up to and including `high`."""

    run = models.ForeignKey(Run, models.CASCADE, db_constraint=False, db_index=False)
    sequence = models.BigIntegerField()
    """Ranges in the order of their keys. Keys themselves are compared by the database alone."""
    low = models.TextField(blank=True)
    """As JSON; empty: from the first one."""
    high = models.TextField()
    done = models.IntegerField(default=0)
    failed = models.IntegerField(default=0)
    skipped = models.IntegerField(default=0)
    digest = models.BigIntegerField(null=True)
    """Of the keys, for an input that is not a queryset: by it a changed input is noticed."""

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["run", "sequence"], name="poolsave_chunk_once")]

    def __str__(self) -> str:
        return f"({self.low}, {self.high}]"


class Failure(models.Model):
    """An object that failed, until it is resolved."""

    class Kind(models.TextChoices):
        """What failed."""

        ERROR = "error", "error"
        """The function, so that nothing of the object was saved."""
        CALLBACK = "callback", "callback"
        """An on_commit callback, when the object was saved; or the process died before it was called."""
        LOST = "lost", "lost"
        """It is not known whether it was saved: the transaction was ended past Django."""

    run = models.ForeignKey(Run, models.CASCADE, related_name="failures", db_constraint=False, db_index=False)
    key = models.TextField()
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.ERROR)
    cause = models.CharField(max_length=300)
    """Failures of one cause have this in common: class, SQLSTATE, constraint, and the line of the user's."""
    error_class = models.CharField(max_length=200)
    sqlstate = models.CharField(max_length=10, blank=True)
    constraint = models.CharField(max_length=200, blank=True)
    frame = models.CharField(max_length=300, blank=True)
    """The innermost line of the user's code: file, line and function."""
    message = models.TextField(blank=True)
    traceback = models.TextField(blank=True)
    attempts = models.IntegerField(default=1)
    """In all sessions."""
    created_at = models.DateTimeField(auto_now_add=True)
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolution = models.CharField(max_length=20, blank=True)
    """How: "retried", "gone" or "forgotten"."""

    class Meta:
        default_permissions = ("view",)
        indexes = [models.Index(fields=["run", "resolved_at", "cause"], name="poolsave_failure_cause")]

    def __str__(self) -> str:
        return f"{self.key}: {self.cause}"
