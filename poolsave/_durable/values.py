"""Values as texts that are the same in each process: of what is bound to a function, and of a queryset's parameters.

They are compared on each resume, stored, and shown to people: long ones are shortened, and secrets are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from hashlib import blake2b, pbkdf2_hmac
from typing import Any

from .._reports.causes import printable
from .._runtime.foreign_exceptions import repr_of

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""In the repr of an object without one of its own: another number in each process."""
LONGEST = 500
"""Characters of a value that are kept; of a longer one a start and a digest."""
START = 200
SECRET = re.compile(
    r"passw|passphrase|passcode|secret|token|api_?key|private_?key|access_?key|credential", re.IGNORECASE
)
"""In the name of what is not stored but as a digest."""
ROUNDS = 100_000
"""Of the digest of a secret, so that it cannot be guessed fast: about 50 ms."""


def text_of_constants(constants: Mapping[str, Any]) -> str:
    """Give them by name, in the order of the names."""
    texts = {name: _secret(name, value) or shortened(text_of_value(value)) for name, value in constants.items()}
    return f"{{{', '.join(f'{name!r}: {texts[name]}' for name in sorted(texts))}}}"


def text_of_value(value: object) -> str:
    """Give the repr of a value, with the members of sets and dictionaries in one order, at any depth."""
    try:
        return storable(_text_of(value))
    except Exception:  # it contains itself, or its class is broken
        return ADDRESS.sub("", storable(repr_of(value)))


def storable(text: str) -> str:
    """Escape what no database stores: halves of surrogate pairs, and NUL."""
    return printable(text).replace("\x00", "\\x00")


def shortened(text: str) -> str:
    """Give a text, or the start and a digest of a long one."""
    if len(text) <= LONGEST:
        return text
    digest = blake2b(text.encode(), digest_size=16).hexdigest()
    return f"{text[:START]}... ({len(text)} characters, digest {digest})"


def _secret(name: object, value: object) -> str | None:
    """Give a digest in place of a value whose name says that it is a secret; None for any other."""
    if not isinstance(name, str) or not SECRET.search(name):
        return None
    digest = pbkdf2_hmac("sha256", text_of_value(value).encode(), f"poolsave {name}".encode(), ROUNDS, 16)
    return f"<not stored, digest {digest.hex()}>"


def _text_of(value: Any) -> str:
    if isinstance(value, dict):
        pairs = sorted(f"{_text_of(key)}: {_member(key, each)}" for key, each in value.items())
        return _of_type(value, dict, f"{{{', '.join(pairs)}}}")
    if isinstance(value, set | frozenset):
        return _of_type(value, set, f"{{{', '.join(sorted(map(_text_of, value)))}}}" if value else "")
    if type(value) is list:
        return f"[{', '.join(map(_text_of, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(_text_of, value))}{',' if len(value) == 1 else ''})"
    names = _names_of(value)
    if names:
        members = (f"{name}={_member(name, getattr(value, name))}" for name in names)
        return f"{type(value).__qualname__}({', '.join(members)})"
    return ADDRESS.sub("", repr_of(value))


def _member(name: object, value: object) -> str:
    return _secret(name, value) or _text_of(value)


def _of_type(value: object, plain: type, text: str) -> str:
    return text if type(value) is plain and text else f"{type(value).__name__}({text})"


def _names_of(value: Any) -> tuple[str, ...]:
    """Give the names of what a named tuple or a dataclass shows of itself, if its repr is the one that Python made."""
    if isinstance(value, tuple):
        return tuple(getattr(value, "_fields", ()))
    if is_dataclass(value) and not isinstance(value, type) and hasattr(type(value).__repr__, "__wrapped__"):
        return tuple(field.name for field in fields(value) if field.repr)
    return ()
