"""What must be the same in each session of a run: the function, what is bound to it, and the rows. As texts by name."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db import connections
from django.db.models import QuerySet

from .._pickling.code import CodeVersion
from .values import shortened, text_of_constants, text_of_value

logger = logging.getLogger("poolsave")
IN_LIST = re.compile(r"%%|%s|\bIN \((?P<items>(?:[^()]|\([^()]*\))*)\)")
"""In SQL with places for parameters: an escaped percent sign, such a place, or a list of them."""
SOURCE = "source"
"""The entry that may differ: a function is corrected, and the run goes on."""


def identity_of(
    function: Any, constants: Mapping[str, Any], queryset: QuerySet[Any] | None, key: Any
) -> dict[str, str]:
    """Identify what a run does."""
    entries = {"function": _name_of(function), "constants": text_of_constants(constants)}
    if queryset is None:
        entries["key"] = _name_of(key)
    else:
        entries |= {"model": queryset.model._meta.label, "database": queryset.db, "rows": _rows_of(queryset)}
    entries[SOURCE] = blake2b(CodeVersion.of(_innermost(function)).digest, digest_size=16).hexdigest()
    return entries


def first_difference(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[str, str | None, str | None] | None:
    """Give the entry that differs, what it was and what it is; None if nothing does, or nothing was noted."""
    if not old:
        return None
    for entry in dict.fromkeys((*new, *old)):
        if entry != SOURCE and old.get(entry) != new.get(entry):
            return entry, old.get(entry), new.get(entry)
    return None


def changed_source(name: str, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Warn in the log if the function is not the one that the run began with."""
    if old and old.get(SOURCE) != new.get(SOURCE):
        logger.warning("the run %r goes on with other code of %s than it began with", name, new["function"])


def _innermost(function: Any) -> Callable[..., Any]:
    inner: Callable[..., Any] = getattr(function, "func", function)
    return inner


def _name_of(function: Any) -> str:
    inner = _innermost(function)
    name = f"{_module_of(inner)}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    owner = getattr(function, "_owner", ())
    return f"{name} of {shortened(text_of_value(owner[0]))}" if owner else name


def _module_of(function: Any) -> str:
    """Give the module's own name, also of the script that was started, so that others can go on with the run."""
    module = str(getattr(function, "__module__", ""))
    main = sys.modules["__main__"]
    if module != "__main__" or not getattr(main, "__file__", None):
        return module
    spec = getattr(main, "__spec__", None)
    return Path(str(main.__file__)).stem if spec is None else spec.name.removesuffix(".__main__")


def _rows_of(queryset: QuerySet[Any]) -> str:
    keys: Any = queryset.order_by().values_list("pk")
    keys.query.select_for_update = False  # its SQL can be made in a transaction alone
    try:
        sql, parameters = keys.query.get_compiler(connection=connections[queryset.db]).as_sql()
    except (EmptyResultSet, FullResultSet):
        return "none"
    return shortened(f"{sql} {text_of_value(_sorted_in_lists(sql, parameters))}" if parameters else str(sql))


def _sorted_in_lists(sql: str, parameters: Any) -> tuple[Any, ...]:
    """Sort the parameters of each `IN (%s, %s)`: their order means nothing, and that of a set differs by process."""
    left, ordered = list(parameters), []
    for match in IN_LIST.finditer(sql):
        text = match.group()
        count = text.replace("%%", "").count("%s")
        taken, left = left[:count], left[count:]
        items = re.split(r", (?![^()]*\))", match["items"] or "")
        if len(set(items)) == 1 and len(items) <= count:
            size = count // len(items)
            rows = sorted((taken[at : at + size] for at in range(0, count, size)), key=text_of_value)
            taken = [value for row in rows for value in row]
        ordered += taken
    return (*ordered, *left)
