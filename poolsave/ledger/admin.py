"""The admin pages of durable runs: what goes on, what failed and why, and buttons for those who may press them.

No page runs anything. A button asks for it, by `control`, and `manage.py poolsave work` or a task does it. No page
reads `Chunk`, so that a page costs the same few queries whatever a run has done.

    list -> start: a form, the number of rows -> control.start --+
      |                                                          |--> page of a run: POST -> control, LogEntry
      +----------------------------------------------------------+        |
                                                                          +--> failures: a list, or CSV
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import django
from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import router, transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed, StreamingHttpResponse
from django.http.response import HttpResponseBase, HttpResponseRedirect
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.text import Truncator
from django.views.decorators.http import require_POST, require_safe

from .._db.inspection import MAX_COUNTED, count_or_estimate
from ..errors import PoolsaveError
from . import _progress as progress
from . import causes, control
from .exports import csv_lines
from .holders import describe
from .models import Failure, Run
from .registry import Backfill, backfills, belongs

__all__ = ["FailureAdmin", "RunAdmin"]

if TYPE_CHECKING:
    RunBase = admin.ModelAdmin[Run]
    FailureBase = admin.ModelAdmin[Failure]
else:
    RunBase = FailureBase = admin.ModelAdmin

TEMPLATES = "admin/poolsave_ledger"
STYLES = "poolsave_ledger/runs.css"
REFRESH = 5
"""Seconds until a page that shows a run under way is loaded again."""
UNDER_WAY = (Run.Status.DUE, *Run.ACTIVE)
"""What changes without anyone pressing a button."""

RETRIABLE = (Run.Status.PAUSED, Run.Status.FINISHED, Run.Status.FINISHED_WITH_FAILURES)
"""Those in which a page shows the button to retry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Button:
    """Something that is asked of a run by POST."""

    name: str
    """In its address and on it; and of the function in `control` that does it."""
    statuses: tuple[str, ...]
    """Those in which a page shows it. Whether it is allowed is decided by `control` alone."""
    said: str
    """What is said once it was asked for, and kept in the run's history."""


BUTTONS = (
    Button(name="pause", statuses=(Run.Status.DUE, Run.Status.RUNNING), said="Asked to pause."),
    Button(name="resume", statuses=(Run.Status.PAUSED,), said="Asked to go on."),
    Button(
        name="cancel",
        statuses=(Run.Status.DUE, Run.Status.RUNNING, Run.Status.PAUSING, Run.Status.PAUSED),
        said="Asked to cancel.",
    ),
)


@admin.register(Run)
class RunAdmin(RunBase):
    """The list of runs, a page for each, and what can be asked of it."""

    list_display = ("run", "state", "how_far", "started")
    list_filter = ("status",)
    search_fields = ("name",)
    show_full_result_count = False
    actions = None
    list_per_page = 50
    change_list_template = f"{TEMPLATES}/run_list.html"

    class Media:
        css = {"all": (STYLES,)}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        return super().get_queryset(request).defer("identity", "high")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Run | None = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        views: list[tuple[str, Callable[..., HttpResponseBase], str]] = [
            ("start/", require_safe(self.backfills_view), "backfills"),
            ("start/<path:name>/", self.start_view, "start"),
            ("<int:pk>/retry/", require_POST(self.retry_view), "retry"),
            ("<int:pk>/failures.csv", require_safe(self.failures_view), "failures"),
        ]
        views += [(f"<int:pk>/{button.name}/", require_POST(self._view_of(button)), button.name) for button in BUTTONS]
        own = [path(route, self.admin_site.admin_view(view), name=_url_name(name)) for route, view, name in views]
        return [*own, *super().get_urls()]

    # Columns of the list

    @admin.display(ordering="name")
    def run(self, run: Run) -> str:
        return run.name

    @admin.display(ordering="status")
    def state(self, run: Run) -> str:
        return render_to_string(f"{TEMPLATES}/state.html", {"run": run, "reason": progress.reason(run)})

    @admin.display(description="progress")
    def how_far(self, run: Run) -> str:
        return render_to_string(f"{TEMPLATES}/progress.html", _bar(run))

    @admin.display(ordering="created_at")
    def started(self, run: Run) -> str:
        return render_to_string(f"{TEMPLATES}/started.html", {"run": run})

    # Pages

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        user: Any = request.user
        may_start = user.has_perm("poolsave_ledger.start_run")
        response = super().changelist_view(request, {"may_start": may_start, **(extra_context or {})})
        if isinstance(response, TemplateResponse) and response.context_data and "cl" in response.context_data:
            runs = response.context_data["cl"].result_list
            response.context_data["refresh"] = REFRESH if any(run.status in UNDER_WAY for run in runs) else None
        return response

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show one run, of which nothing can be changed but by the buttons."""
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        run = self._find(request, object_id)
        shown = causes.grouped(run)
        context = {**_bar(run), "reason": progress.reason(run), "causes": shown}
        context["holder"] = describe(run.holder) if run.holder else ""
        context |= {"unresolved": sum(cause.failures for cause in shown)}
        return self._page(
            request, "run", run.name, {**context, **self._permitted(request, run), **(extra_context or {})}
        )

    def _permitted(self, request: HttpRequest, run: Run) -> dict[str, Any]:
        user: Any = request.user
        may = user.has_perm
        under_way = run.status in UNDER_WAY
        buttons = BUTTONS if may("poolsave_ledger.control_run") else ()
        return {
            "buttons": [button for button in buttons if run.status in button.statuses or _revives(button, run)],
            "may_retry": run.status in RETRIABLE and may("poolsave_ledger.retry_failures"),
            "may_read": may("poolsave_ledger.view_failure"),
            "may_forget": run.status not in Run.ACTIVE and self.has_delete_permission(request, run),
            "refresh": REFRESH if under_way else None,
        }

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        self._find(request, object_id)  # Django would lead from a run that is not there to another page
        return super().history_view(request, object_id, extra_context)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Forget a run, after a question. Django's own page would load each row of the run."""
        run = self._find(request, object_id)
        if not self.has_delete_permission(request, run):
            raise PermissionDenied
        if request.method != "POST":
            return self._page(request, "forget", f"Forget {run.name}", {**_bar(run), **(extra_context or {})})

        def forget() -> str:
            self.log_deletions(request, Run.objects.filter(pk=run.pk))
            control.forget(run.name)
            return f"Forgot {run.name}."

        done = self._ask(request, forget)
        return _redirect("changelist") if done else _redirect("change", run.pk)

    # What is asked of runs

    def backfills_view(self, request: HttpRequest) -> HttpResponse:
        """Show what can be started."""
        self._require(request, "start_run")
        registered = backfills()
        runs = {run.name: run for run in self.get_queryset(request).filter(name__in=registered)}
        rows = [(name, _function_name(backfill), runs.get(name)) for name, backfill in registered.items()]
        return self._page(request, "backfills", "Start a run", {"rows": rows})

    def start_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Ask for the parameters, show how many rows there are, and start when that has been seen."""
        self._require(request, "start_run")
        backfill = backfills().get(name)
        if backfill is None:
            raise Http404(f"no backfill is registered as {name!r}")
        form = (backfill.form or forms.Form)(request.POST if request.method == "POST" else None)
        context = {"name": name, "form": form, "backfill": backfill}
        if backfill.form and not form.is_valid():
            return self._page(request, "start", f"Start {name}", context)
        parameters = _parameters(request, form)
        if "start" in request.POST:
            return self._start(request, name, parameters)
        counted = _rows_text(count_or_estimate(backfill.rows(parameters)))
        return self._page(request, "start", f"Start {name}", {**context, "counted": counted})

    def _start(self, request: HttpRequest, name: str, parameters: dict[str, Any]) -> HttpResponse:
        def start() -> str:
            run = control.start(name, parameters, by=request.user.get_username())
            self.log_addition(request, run, "Started.")
            return "Asked to start. It begins as soon as a worker takes it."

        self._ask(request, start)
        run = Run.objects.filter(name=name).first()
        return HttpResponseRedirect(request.path) if run is None else _redirect("change", run.pk)

    def _view_of(self, button: Button) -> Callable[..., HttpResponse]:
        def view(request: HttpRequest, pk: int) -> HttpResponse:
            self._require(request, "control_run")
            run = self._find(request, pk)

            def ask() -> str:
                getattr(control, button.name)(run.name, by=request.user.get_username())
                self.log_change(request, run, button.said)
                return button.said

            self._ask(request, ask)
            return _redirect("change", pk)

        return view

    def retry_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Have the failures of one cause, or all of them, tried again."""
        self._require(request, "retry_failures")
        run, cause = self._find(request, pk), request.POST.get("cause", "")

        def retry() -> str:
            count = control.retry(run.name, cause=cause, by=request.user.get_username())
            if not count:
                return "No unresolved failure can be tried again."
            said = f"Asked to try {count:,} failures again{f': {cause}' if cause else ''}."
            self.log_change(request, run, said)
            return said

        self._ask(request, retry)
        return _redirect("change", pk)

    def failures_view(self, request: HttpRequest, pk: int) -> StreamingHttpResponse:
        """Send the unresolved failures, of one cause or all of them, as CSV."""
        self._require(request, "view_failure")
        run = self._find(request, pk)
        failures = Failure.objects.using(run._state.db).filter(run_id=run.pk, resolved_at=None).order_by("pk")
        if cause := request.GET.get("cause"):
            failures = failures.filter(cause=cause)
        response = StreamingHttpResponse(csv_lines(failures), content_type="text/csv; charset=utf-8")
        response["Content-Disposition"] = f'attachment; filename="failures-{run.pk}.csv"'
        return response

    # What the above have in common

    def _require(self, request: HttpRequest, permission: str) -> None:
        """Each action needs its own permission, and that to view runs."""
        user: Any = request.user
        if not (self.has_view_permission(request) and user.has_perm(f"poolsave_ledger.{permission}")):
            raise PermissionDenied

    def _find(self, request: HttpRequest, object_id: Any) -> Run:
        if not self.has_view_permission(request):
            raise PermissionDenied
        run = self.get_object(request, str(object_id))
        if run is None:
            raise Http404(f"there is no run {object_id!r}")
        return run

    def _ask(self, request: HttpRequest, action: Callable[[], str]) -> bool:
        """Do it together with its LogEntry, or say why not. A run may have changed since its page was loaded."""
        try:
            with transaction.atomic(using=router.db_for_write(Run)):
                said = action()
        except PoolsaveError as refusal:
            self.message_user(request, str(refusal), messages.ERROR)
            return False
        self.message_user(request, said, messages.SUCCESS)
        return True

    def _page(self, request: HttpRequest, name: str, title: str, context: dict[str, Any]) -> TemplateResponse:
        shared = {**self.admin_site.each_context(request), "opts": self.opts, "title": title, "media": self.media}
        shared["title_has_tools"] = django.VERSION >= (6, 1)  # whose own page has a place for them beside its title
        return TemplateResponse(request, f"{TEMPLATES}/{name}.html", {**shared, **context})


@admin.register(Failure)
class FailureAdmin(FailureBase):
    """Failures one by one, to be read."""

    list_display = ("key", "run", "cause", "text", "created_at")
    list_filter = ("kind", ("resolved_at", admin.EmptyFieldListFilter))
    list_select_related = ("run",)
    search_fields = ("=key",)
    fields = (
        "run", "key", "kind", "error_class", "sqlstate", "constraint", "frame", "message", "as_printed", "attempts",
        "created_at", "resolved_at", "resolution",
    )  # fmt: skip
    ordering = ("-pk",)
    show_full_result_count = False
    actions = None

    class Media:
        css = {"all": (STYLES,)}

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        return lookup in ("run__id__exact", "cause__exact") or super().lookup_allowed(lookup, value, request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Failure | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Failure | None = None) -> bool:
        return False

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        titles = {"title": "Failure", "subtitle": None}  # the cause, which is as long, stands below
        return super().change_view(request, object_id, form_url, {**titles, **(extra_context or {})})

    @admin.display(description="traceback")
    def as_printed(self, failure: Failure) -> str:
        return format_html('<pre class="run-traceback">{}</pre>', failure.traceback)

    @admin.display(description="message")
    def text(self, failure: Failure) -> str:
        return Truncator(failure.message).chars(200)


def _parameters(request: HttpRequest, form: forms.BaseForm) -> dict[str, Any]:
    """Give what was filled in, as texts: as the ledger keeps it, and as a form is given it."""
    return {key: values if len(values) > 1 else values[0] for key, values in request.POST.lists() if belongs(key, form)}


def _function_name(backfill: Backfill) -> str:
    function = backfill.operation.func
    return f"{function.__module__}.{function.__qualname__}"


def _rows_text(count: int | None) -> str:
    if count is None:
        return f"more than {MAX_COUNTED:,} rows"
    return f"{'about ' if count > MAX_COUNTED else ''}{count:,} row{'' if count == 1 else 's'}"


def _bar(run: Run) -> dict[str, Any]:
    """What the template of a run's progress shows."""
    figures = {"counts": progress.counts(run), "ended": progress.ended_objects(run), "pace": progress.pace(run)}
    return {"run": run, **figures}


def _revives(button: Button, run: Run) -> bool:
    return button.name == "resume" and progress.needs_rescue(run)


def _url_name(view: str) -> str:
    return f"poolsave_ledger_run_{view}"


def _redirect(view: str, *args: object) -> HttpResponseRedirect:
    return HttpResponseRedirect(reverse(f"admin:{_url_name(view)}", args=args))
