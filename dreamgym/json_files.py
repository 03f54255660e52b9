"""JSON on disk that shows when it was changed: a checksum among its fields, and checks of what is read."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

SUM = "sha256"
"""The field that holds the checksum of all others."""

MOST_BYTES = 64 * 2**20
"""Largest file that is read; logs of a hundred rounds are less than a hundredth of it."""


def checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON values, however they are ordered and laid out; :data:`SUM` is left out."""
    plain = json.loads(json.dumps({name: value for name, value in values.items() if name != SUM}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with their checksum."""
    return {**values, SUM: checksum(values)}


def unsealed(values: Any) -> dict[str, Any]:
    """The inverse of :func:`sealed`; what was written before there were checksums is taken as it is.

    Raises:
        ValueError: the values are not an object, or not those that were sealed.
    """
    if not isinstance(values, dict):
        raise ValueError(f"expected an object with fields, got {type(values).__name__}")
    fields = dict(cast("dict[str, Any]", values))
    found = fields.pop(SUM, None)
    if found is not None and found != checksum(fields):
        raise ValueError(
            f"its fields are not those that were written ({SUM} expected {checksum(fields)}, got {found}). If it was "
            f"changed on purpose, remove the field {SUM!r}"
        )
    return fields


def parse_json(text: str) -> Any:
    """Parse JSON in which no object names a field twice.

    Raises:
        ValueError: it is no JSON, names a field twice, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {', '.join(sorted({name for name in names if names.count(name) > 1}))} twice")
    return values


def read_text(path: Path) -> str:
    """A text file that is not larger than :data:`MOST_BYTES`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or no UTF-8.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES:,} bytes, got {size:,}")
    return path.read_text(encoding="utf-8")


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain JSON value is of a type: int, float (finite), bool, str, Literal, tuple, dict or a union."""
    kind, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind is Literal:
        return value in parts
    if kind in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if kind is tuple:
        items = cast("list[Any]", value) if isinstance(value, list | tuple) else [None]
        each = [parts[0]] * len(items) if parts[-1] is ... else list(parts)
        return len(items) == len(each) and all(fits(item, part) for item, part in zip(items, each, strict=True))
    if kind is dict:
        return isinstance(value, dict) and all(
            fits(name, parts[0]) and fits(item, parts[1]) for name, item in cast("dict[Any, Any]", value).items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
