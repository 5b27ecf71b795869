"""How many rows a queryset has, for display: counted if that is quick, else estimated by the database."""

from __future__ import annotations

import json
from typing import Any

from django.db import connections
from django.db.models import QuerySet

MAX_COUNTED = 100_000
"""The most rows that are counted, which takes some 0.02 s."""


def count_or_estimate(queryset: QuerySet[Any]) -> int | None:
    """Give the number of rows, for display only.

    Above `MAX_COUNTED` it is the server's estimate, or None if the server has none. SQLite keeps no statistics unless
    it is asked to, and counts in the caller's process at any size.
    """
    rows = queryset.order_by()
    rows.query.select_for_update = False
    vendor = connections[queryset.db].vendor
    if vendor == "sqlite":
        return rows.count()
    counted = rows.values("pk")[: MAX_COUNTED + 1].count()
    if counted <= MAX_COUNTED:
        return counted
    estimate = ESTIMATES.get(vendor, _unknown)(rows)
    return None if estimate is None else max(estimate, counted)


def _by_postgresql(rows: QuerySet[Any]) -> int | None:
    (answer,) = json.loads(rows.explain(format="JSON"))
    return int(answer["Plan"]["Plan Rows"])


def _by_mysql(rows: QuerySet[Any]) -> int | None:
    if rows.query.where or rows.query.distinct or len(rows.query.alias_map) > 1:
        return None  # its statistics count a whole table, without filters and joins
    with connections[rows.db].cursor() as cursor:
        cursor.execute(
            "SELECT table_rows FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = %s",
            [rows.model._meta.db_table],
        )
        row = cursor.fetchone()
    return None if row is None else row[0]


def _unknown(_rows: QuerySet[Any]) -> int | None:
    return None


ESTIMATES = {"postgresql": _by_postgresql, "mysql": _by_mysql}
