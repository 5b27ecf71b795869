"""Pickles files that are not in a storage yet: content in memory is included, a file open on disk is refused.

Django's own pickling of a FieldFile drops the content and claims that the file is in the storage.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from django.core.files.base import File
from django.db.models.fields.files import FieldFile

from ..errors import InvalidOperation


def reduce_file(file: File[Any]) -> Any:
    """Give the reduction for pickle: the file's own one, with its content if that is in memory.

    Raises:
        InvalidOperation: if the file is open on disk, where only this process can read it.
    """
    content = _unsaved_content(file)
    if _is_on_disk(content):
        raise InvalidOperation(
            f"{_described(file)} is open on disk, so that it cannot be sent to a worker: save it first, give its "
            'path and open it in the function, or use executor="thread"'
        )
    reduced: Any = file.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    if content is None or not isinstance(file, FieldFile):
        return reduced
    return *reduced[:2], {**reduced[2], "_committed": False, "_file": content}


def is_unsaved(file: object) -> bool:
    """Whether `save()` has still to put this value of a FileField into a storage."""
    return isinstance(file, File) and not getattr(file, "_committed", False)


def _unsaved_content(file: File[Any]) -> Any:
    # Not by attribute, which would open a file that is in a storage.
    if isinstance(file, FieldFile):
        return vars(file).get("_file") if is_unsaved(file) else None
    return vars(file).get("file")


def _is_on_disk(content: Any) -> bool:
    while isinstance(content, File):
        content = _unsaved_content(content)
    return hasattr(content, "fileno") and not isinstance(content, io.BytesIO | io.StringIO)


def _described(file: File[Any]) -> str:
    where = f" of {file.field}" if isinstance(file, FieldFile) else ""
    return f"the file {file.name!r}{where}"
