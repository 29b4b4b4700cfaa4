"""Strict JSON for what a stranger wrote: bounded, unambiguous, and every error names its field.

JSON (RFC 8259) leaves to the reader what a repeated key, a lone surrogate or NaN means, so two programs
can read two different images in the same signed bytes. Here all of these are errors. Documents are
bounded in bytes and in depth before anyone walks them.
"""

import json
import math
from collections import Counter
from typing import Any, NoReturn

from lazyfs.errors import BadInputError, LimitError

MAX_DEPTH = 64
MAX_INTEGER = 2**63 - 1  # the OCI specification's int64

_HINT = "make or copy the image again; `skopeo inspect --raw` shows the document"


class Fields:
    """One JSON object and the path that leads to it; each getter checks its field's type.

    A field that is null counts as absent, as in the Go programs that write most of these documents.
    """

    __slots__ = ("path", "values")

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            wrong_type(path, "an object", value)
        self.values: dict[str, Any] = value
        self.path = path

    def at(self, key: str) -> str:
        shown = plain(key)
        return f"{self.path}.{key}" if shown == key else f"{self.path}[{shown}]"

    def require(self, key: str) -> None:
        if key not in self.values:
            bad(f"{self.at(key)} is missing")

    def text(self, key: str, *, required: bool = False) -> str:
        if required:
            self.require(key)
        elif self.values.get(key) is None:
            return ""
        value = _text(self.values[key], self.at(key))
        if required and not value:
            bad(f"{self.at(key)} is empty")
        return value

    def integer(self, key: str) -> int:
        """A required integer from 0 to 2^63 - 1."""
        self.require(key)
        value = self.values[key]
        if not isinstance(value, int) or isinstance(value, bool):
            wrong_type(self.at(key), "an integer", value)
        if not 0 <= value <= MAX_INTEGER:
            bad(f"{self.at(key)} must be between 0 and 2^63 - 1, not {short(value)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(_text(item, path) for item, path in self._items(key))

    def text_map(self, key: str) -> dict[str, str]:
        child = self.child(key)
        if child is None:
            return {}
        return {_text(name, child.path): child.text(name) for name in child.values}

    def names(self, key: str) -> tuple[str, ...]:
        """The sorted names of a set, which Go writes as {"name": {}}."""
        child = self.child(key)
        if child is None:
            return ()
        for name in child.values:
            child.child(name)
        return tuple(sorted(_text(name, child.path) for name in child.values))

    def child(self, key: str) -> "Fields | None":
        value = self.values.get(key)
        return None if value is None else Fields(value, self.at(key))

    def required_child(self, key: str) -> "Fields":
        self.require(key)
        return Fields(self.values[key], self.at(key))

    def children(self, key: str) -> list["Fields"]:
        return [Fields(item, path) for item, path in self._items(key)]

    def _items(self, key: str) -> list[tuple[object, str]]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            wrong_type(self.at(key), "a list", value)
        return [(item, f"{self.at(key)}[{number}]") for number, item in enumerate(value)]


def load(data: bytes, path: str, limit: int) -> Fields:
    """Parse one JSON object of at most ``limit`` bytes; ``path`` names it in errors.

    Raises BadInputError, or LimitError when it is too large.
    """
    if len(data) > limit:
        raise LimitError(f"{path} has {len(data)} bytes, more than the limit of {limit}", hint=_HINT)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(items)
        if len(values) != len(items):
            [(key, count)] = Counter(key for key, _ in items).most_common(1)
            bad(f"{path} has the key {short(key)} {count} times in one object")
        return values

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_float=_finite,
            parse_constant=_finite,
        )
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise BadInputError(f"{path} is not UTF-8: {error.reason}", hint=_HINT) from error
    except ValueError as error:
        raise BadInputError(f"{path} is not JSON: {short(str(error), 200)}", hint=_HINT) from error
    except RecursionError as error:
        raise BadInputError(f"{path} is nested deeper than {MAX_DEPTH} levels", hint=_HINT) from error
    _check_depth(value, path)
    return Fields(value, path)


def dump(value: object) -> bytes:
    """The one encoding of a value: sorted keys, no white space, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def rest(source: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """What ``source`` says beyond ``known``, so that `merge` can put it back."""
    extra: dict[str, Any] = {}
    for key, value in source.items():
        if key not in known:
            extra[key] = value
        elif isinstance(value, dict) and isinstance(known[key], dict):
            below = rest(value, known[key])
            if below:
                extra[key] = below
    return extra


def merge(extra: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """``known`` over ``extra``, object by object."""
    merged = dict(extra)
    for key, value in known.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def bad(message: str) -> NoReturn:
    raise BadInputError(message, hint=_HINT)


def wrong_type(path: str, wanted: str, value: object) -> NoReturn:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    bad(f"{path} must be {wanted}, not {names.get(type(value), 'a number')}")


def short(value: object, length: int = 80) -> str:
    """A value for an error message: on one line, and never longer than a line."""
    text = value if isinstance(value, str) else str(value)
    shown = repr(text[: length + 1])
    return shown if len(text) <= length else f"{shown[:length]}…"


def plain(text: str) -> str:
    """A stranger's name as it is, if it is harmless on a terminal, else as `short` shows it."""
    return text if text.isprintable() and len(text) <= 80 else short(text)


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        wrong_type(path, "a text", value)
    if "\0" in value:
        bad(f"{path} contains a NUL character")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a number")
    return value


def _check_depth(value: object, path: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    bad(f"{path} is nested deeper than {MAX_DEPTH} levels")


def filled(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty: documents leave it out."""
    return {key: value for key, value in values.items() if value}
