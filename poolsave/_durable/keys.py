"""Keys as text: JSON, which the ledger stores and which is never compared in Python, except for equality.

How keys are ordered is known to the database alone, by its collations and types.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from datetime import date, datetime, time
from hashlib import blake2b
from typing import Any

from django.db.models import QuerySet

PRIME = 2**61 - 1
"""Digests are numbers below it, which fit into a BigIntegerField."""
BASE = 911382323
"""Any number below `PRIME`; the same for ever, since digests are stored."""


def encode(key: Any) -> str:
    """Give a key as JSON.

    Example:
        >>> encode(5), encode("b"), encode((1, "b"))
        ('5', '"b"', '[1,"b"]')
    """
    if type(key) is int:
        return str(key)
    text = json.dumps(_plain(key), ensure_ascii=False, separators=(",", ":"))
    return text if text.isascii() or _is_unicode(text) else json.dumps(_plain(key), separators=(",", ":"))


def _is_unicode(text: str) -> bool:
    """Whether it is without halves of surrogate pairs, which come from undecodable names of files."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(key: Any) -> Any:
    if isinstance(key, tuple | list):
        return [_plain(part) for part in key]
    if key is None or isinstance(key, bool | int | float | str):
        return key
    if isinstance(key, datetime | date | time):
        return key.isoformat()
    if isinstance(key, bytes | memoryview):
        return base64.b64encode(bytes(key)).decode()
    return str(key)


def decode(text: str, queryset: QuerySet[Any]) -> Any:
    """Give the primary key of that queryset's model from its JSON."""
    field: Any = queryset.model._meta.pk
    value = json.loads(text)
    if isinstance(value, list):
        return tuple(part.to_python(each) for part, each in zip(field.fields, value, strict=True))
    return _as_bytes(field.to_python(value))


def _as_bytes(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def digest_of(texts: Iterable[str]) -> int:
    """Give a number for keys in this order, such that those of neighbours give that of both (`joined_digest`)."""
    digest = 0
    for text in texts:
        digest = (digest * BASE + int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")) % PRIME
    return digest


def joined_digest(first: int, second: int, count: int) -> int:
    """Give the digest of keys from that of the first ones, and that of the `count` keys that follow."""
    return (first * pow(BASE, count, PRIME) + second) % PRIME
