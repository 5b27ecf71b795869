"""`manage.py poolsave`: see durable runs, and start, pause, resume, cancel, retry, forget and work on them.

    $ manage.py poolsave start articles-slug
    $ manage.py poolsave work --once
    $ manage.py poolsave status articles-slug

It asks the ledger by `control` and runs nothing itself, but for `work`. docs/reference/command.md has it for users.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser, DjangoHelpFormatter
from django.db import DatabaseError, connections, router
from django.utils.dateparse import parse_date, parse_datetime

from poolsave.errors import PoolsaveError, UnknownRun
from poolsave.ledger import _texts as texts
from poolsave.ledger import causes, control, exports
from poolsave.ledger.holders import STALE_AFTER
from poolsave.ledger.models import Run
from poolsave.ledger.registry import backfills, find_backfill
from poolsave.ledger.work import work, work_on

ATTENTION = 3
"""The exit status if a run needs someone: it has failures that wait, or stopped without anyone asking for it."""
INTERRUPTED = 130
READER_GONE = 141
"""What a shell has for a program that SIGPIPE has ended."""
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
CLEAR = "\x1b[{lines}F\x1b[J"
"""Go to the begin of so many lines before, and clear what is below."""
DJANGOS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("-v", "--verbosity"), {"type": int, "choices": [0, 1, 2, 3]}),
    (("--settings",), {}),
    (("--pythonpath",), {}),
    (("--traceback",), {"action": "store_true"}),
)
"""Options that all commands have."""
EXIT_STATUSES = """exit status:
  0    done as asked
  1    refused, or not possible; standard error says why
  2    wrong arguments
  3    status, work: a run needs someone; it has unresolved failures, or has stopped without being asked to
  130  work, status --watch: ended by Ctrl-C
  141  the reader of its output has gone, as in `failures NAME | head`
"""


class HelpFormatter(DjangoHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Django's, with the lines of the exit statuses as they are."""


class Command(BaseCommand):
    """One action for each verb. Each prints a table, lines with tabs, or JSON."""

    help = "See durable runs, and start, pause, resume, cancel, retry, forget and work on them."

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        kwargs |= {"epilog": EXIT_STATUSES, "formatter_class": HelpFormatter}
        return super().create_parser(prog_name, subcommand, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        action = partial(_add_action, actions)
        action("list", "All runs, and the backfills that have none.", named=False)
        status = action("status", "How far a run is, and the causes of its failures.")
        status.add_argument("--watch", action="store_true", help="until it ends or is paused")
        status.add_argument("--every", type=_seconds, default=1.0, metavar="SECONDS", help="with --watch")
        start = action("start", "Make the run of a registered backfill, which is due then.")
        start.add_argument(
            "--set",
            action="append",
            default=[],
            type=_pair,
            metavar="NAME=VALUE",
            help="a parameter, in place of its default",
        )
        action("resume", "Have a paused run go on, or one whose process has died: it is due.")
        action("pause", "Stop a run when what it has begun is done.")
        action("cancel", "End a run for good when what it has begun is done.")
        recover = action("recover", "Make all runs due whose process has died.", named=False)
        recover.add_argument(
            "--stale-after",
            type=_seconds,
            default=STALE_AFTER.total_seconds(),
            metavar="SECONDS",
            help="without a heartbeat",
        )
        retry = action("retry", "Try failures of a run again.")
        retry.add_argument("--limit", type=_positive, metavar="NUMBER", help="at most so many, those that came first")
        forget = action(
            "forget", "Delete what the ledger has of a run, which can begin anew then; or give failures up."
        )
        forget.add_argument("--failures", action="store_true", help="keep the run: its failures count as resolved")
        forget.add_argument("--yes", action="store_true", help="do not ask")
        listed = action("failures", "The unresolved failures of a run, as CSV.")
        for chooser in (retry, forget, listed):
            _add_choice_of_failures(chooser)
        worker = action("work", "Work on what is due, for ever; or on one run, until it is not due.", named=False)
        worker.add_argument("name", nargs="?", help="of the run")
        worker.add_argument("--once", action="store_true", help="end when nothing is due")
        worker.add_argument("--slice", type=_seconds, metavar="SECONDS", help="then another run has its turn")

    def handle(self, *, action: str, database: str | None, **options: Any) -> None:
        """Do one action, and say in one line why it cannot be done."""
        if database is not None and database not in connections:
            raise CommandError(f"--database {database!r} is none of {', '.join(sorted(connections))}")
        self.alias = database or router.db_for_write(Run)
        self.as_json, self.plain = options.pop("json"), options.pop("plain")
        with _one_line(self.alias), _until_reader_is_gone(self.stdout):
            getattr(self, f"_{action}")(**options)

    def _list(self, **_options: Any) -> None:
        runs = list(Run.objects.using(self.alias))
        found = [texts.figures(run) for run in runs]
        names = {run.name for run in runs}
        found += [texts.no_run(name) for name in backfills() if name not in names]
        if self.as_json:
            self._json(found)
        elif self.plain:
            self._lines("\t".join(map(texts.cell, row.values())) for row in found)
        else:
            rows = [texts.row(run) for run in runs]
            rows += [(row["name"], row["status"], "", "", "") for row in found[len(runs) :]]
            self._lines(texts.table(("run", "status", "objects", "pace", ""), rows) if rows else ["there is no run"])

    def _status(self, *, name: str, watch: bool, every: float, **_options: Any) -> None:
        try:
            run = control.find_run(name, using=self.alias)
        except UnknownRun:
            if name not in backfills():
                raise
            self._show_no_run(name)
            return
        shown = self._show(run, "")
        while watch and run.status in (Run.Status.DUE, *Run.ACTIVE):
            _pause(every)
            run = control.find_run(name, using=self.alias)
            shown = self._show(run, shown)
        if complaint := texts.complaint(run):
            raise CommandError(f"{name} needs someone: {complaint}", returncode=ATTENTION)

    def _show_no_run(self, name: str) -> None:
        found = texts.no_run(name)
        if self.as_json:
            self._lines([texts.as_json({**found, "causes": []}, indent=None)])
        elif self.plain:
            self._lines(f"{key}\t{texts.cell(value)}" for key, value in found.items())
        else:
            self._lines([f"{name}: {found['status']}; `manage.py poolsave start {name}` makes its run"])

    def _show(self, run: Run, before: str) -> str:
        """Print a run if it looks otherwise than before; on a terminal in the place of what was there."""
        found = causes.grouped(run)
        if self.as_json:
            text = texts.as_json({**texts.figures(run), "causes": [one._asdict() for one in found]}, indent=None)
        elif self.plain:
            lines = [f"{key}\t{texts.cell(value)}" for key, value in texts.figures(run).items()]
            text = "\n".join([*lines, *(f"cause\t{one.failures}\t{texts.cell(one.cause)}" for one in found)])
        else:
            text = "\n".join(texts.paragraph(run, found))
        if text != before:
            clear = CLEAR.format(lines=len(before.splitlines())) if before and self.stdout.isatty() else ""
            self.stdout.write(clear + text)
        return text

    def _start(self, *, name: str, set: list[tuple[str, str]], **_options: Any) -> None:  # noqa: A002  the option's name
        given: dict[str, list[str]] = {}
        for key, value in set:
            given.setdefault(key, []).append(value)
        parameters = {key: values[0] if len(values) == 1 else values for key, values in given.items()}
        defaults = find_backfill(name).defaults(parameters)
        self._say(control.start(name, {**defaults, **parameters}, by=_user(), using=self.alias))
        if defaults and not (self.as_json or self.plain):
            self._lines(f"  {key}={value!r} by default" for key, value in defaults.items())

    def _resume(self, *, name: str, **_options: Any) -> None:
        self._say(control.resume(name, by=_user(), using=self.alias))

    def _pause(self, *, name: str, **_options: Any) -> None:
        self._say(control.pause(name, by=_user(), using=self.alias))

    def _cancel(self, *, name: str, **_options: Any) -> None:
        self._say(control.cancel(name, by=_user(), using=self.alias))

    def _recover(self, *, stale_after: float, **_options: Any) -> None:
        self._say(*control.recover(stale_after=timedelta(seconds=stale_after), using=self.alias))

    def _retry(self, *, name: str, cause: str, since: Any, limit: int | None, **_options: Any) -> None:
        count = control.retry(name, cause=cause, since=since, limit=limit, by=_user(), using=self.alias)
        self._count(count, "to be tried again")

    def _forget(self, *, name: str, failures: bool, cause: str, since: Any, yes: bool, **_options: Any) -> None:
        if (cause or since) and not failures:
            raise CommandError("--cause and --since choose failures: give --failures with them")
        what = "the failures" if failures else "all that the ledger has"
        if not yes and not self._agreed(f"Forget {what} of {name}?"):
            raise CommandError("nothing is forgotten: give --yes, or answer yes at a terminal")
        if failures:
            self._count(control.forget_failures(name, cause=cause, since=since, using=self.alias), "given up")
        else:
            control.forget(name, using=self.alias)

    def _agreed(self, question: str) -> bool:
        return sys.stdin is not None and sys.stdin.isatty() and input(f"{question} [yes/no] ").strip() in ("y", "yes")

    def _failures(self, *, name: str, cause: str, since: Any, **_options: Any) -> None:
        run = control.find_run(name, using=self.alias)
        chosen = control.unresolved(run, cause=cause, since=since)
        lines = exports.json_lines(chosen) if self.as_json else exports.csv_lines(chosen)
        with closing(lines):  # and its cursor, before the connection
            self._lines(lines, ending="\n" if self.as_json else "")

    def _work(self, *, name: str | None, once: bool, slice: float | None, verbosity: int, **_options: Any) -> None:  # noqa: A002
        options = {} if verbosity else {"progress": False}
        worked: dict[str, Run] = {}

        def ended(run: Run) -> None:
            worked[run.name] = run
            self._say(run)

        try:
            if name is None:
                work(once=once, seconds=slice, using=self.alias, ended=ended, **options)
            else:
                self._work_on(name, slice, ended, options)
        except KeyboardInterrupt:
            self.stderr.write("interrupted: what had begun is done, and the run is due again")
            sys.exit(INTERRUPTED)
        complaints = [f"{run.name} needs someone: {why}" for run in worked.values() if (why := texts.complaint(run))]
        if complaints:
            raise CommandError("\n".join(complaints), returncode=ATTENTION)

    def _work_on(self, name: str, seconds: float | None, ended: Any, options: Mapping[str, Any]) -> None:
        control.find_run(name, using=self.alias)
        control.recover(using=self.alias)
        while (run := work_on(name, seconds=seconds, using=self.alias, **options)) is not None:
            ended(run)
            if not control.due(using=self.alias).filter(pk=run.pk).exists():
                return
        run = control.find_run(name, using=self.alias)
        raise CommandError(f"the run {name!r} is {run.status}, so that there is nothing to work on")

    def _say(self, *runs: Run) -> None:
        """Print what has become of runs."""
        if self.as_json:
            self._json([texts.figures(run) for run in runs])
        elif self.plain:
            self._lines("\t".join(map(texts.cell, texts.figures(run).values())) for run in runs)
        else:
            self._lines(": ".join((run.name, texts.summary(run))) for run in runs)

    def _count(self, count: int, what: str) -> None:
        if self.as_json:
            self._json({"failures": count})
        else:
            self._lines([str(count) if self.plain else f"{texts.failures(count)} {what}"])

    def _json(self, value: Any) -> None:
        self.stdout.write(texts.as_json(value, indent=2))

    def _lines(self, lines: Any, ending: str = "\n") -> None:
        for line in lines:
            self.stdout.write(line, ending=ending)


@contextmanager
def _until_reader_is_gone(stdout: Any) -> Iterator[None]:
    """End without a word if what is printed goes to a pipe that nothing reads any more."""
    try:
        yield
        stdout.flush()
    except BrokenPipeError:
        if stdout._out is sys.stdout:  # the interpreter would complain as it flushes it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(READER_GONE)


@contextmanager
def _one_line(alias: str) -> Iterator[None]:
    """Say why something is refused in one line, without a traceback."""
    try:
        yield
    except PoolsaveError as error:
        raise CommandError(str(error)) from error
    except DatabaseError as error:
        if Run._meta.db_table in connections[alias].introspection.table_names():
            raise
        raise CommandError(
            f"the database {alias!r} has no ledger: run `manage.py migrate poolsave_ledger --database={alias}`, or "
            "give --database"
        ) from error


def _add_action(actions: Any, name: str, help_text: str, *, named: bool = True) -> CommandParser:
    """Add one action, with what all of them take. `named`: it is about one run."""
    added: CommandParser = actions.add_parser(name, help=help_text, description=help_text)
    if named:
        added.add_argument("name", help="of the run")
    added.add_argument("--database", help="the alias of the ledger's database")
    shape = added.add_mutually_exclusive_group()
    shape.add_argument("--plain", action="store_true", help="lines with tabs between the values")
    shape.add_argument("--json", action="store_true", help="JSON")
    for words, kind in DJANGOS:  # else these would have to stand before the action
        added.add_argument(*words, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **kind)
    return added


def _add_choice_of_failures(parser: CommandParser) -> None:
    parser.add_argument("--cause", default="", help="a SQLSTATE, a class, a constraint, or the whole cause")
    parser.add_argument("--since", type=_since, metavar="WHEN", help='such as "7d", "12h" or "2026-11-28 09:00"')


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return ""


def _pause(seconds: float) -> None:
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not at least 1")
    return number


def _since(text: str) -> datetime | timedelta:
    if text[:-1].isdecimal() and text[-1:] in UNITS:
        return timedelta(**{UNITS[text[-1]]: int(text[:-1])})
    try:
        moment = parse_datetime(text)
        day = None if moment else parse_date(text)
    except ValueError as error:  # such as the 30th of February
        raise argparse.ArgumentTypeError(f"{text!r} is no time: {error}") from error
    if moment is None and day is not None:
        moment = datetime.combine(day, datetime.min.time())
    if moment is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither an age, such as 7d, 12h or 30m, nor a date or a time")
    return moment
