"""containerd's filter expressions (containerd, pkg/filters): which snapshots a List names.

filter    = selector *("," selector)          all of them; several filters: any of them; none: everything
selector  = field *("." field) [operator value]     without an operator: the field is there
operator  = "==" | "!=" | "~="                "!=" is true of a field that is not there; "~=" searches
field     = word | quoted
value     = quoted | anything up to a comma or a blank
quoted    = "…" with the escapes of Go; a value of "~=" may also stand in /…/ or |…|
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lazyfs.errors import UsageError
from snapshotter.records import Kind, Snapshot

Filter = Callable[[Snapshot], bool]

_FIELD = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR = re.compile(r"[=!~]+")
_VALUE = re.compile(r"[^\s,]+")
_BLANKS = re.compile(r"\s*")
_QUOTED = {quote: re.compile(rf"{quote}((?:[^{quote}\\\n]|\\.)*){quote}") for quote in ('"', "/", r"\|")}
_ESCAPE = re.compile(r"\\(?:([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
_KINDS = {Kind.VIEW: "view", Kind.ACTIVE: "active", Kind.COMMITTED: "committed"}


def parse_filters(texts: Sequence[str]) -> Filter:
    """The predicate of a List; UsageError names what cannot be read."""
    filters = [_Parser(text).parse() for text in texts]
    return lambda snapshot: (
        not filters or any(all(selector.matches(snapshot) for selector in selectors) for selectors in filters)
    )


@dataclass(frozen=True, slots=True)
class _Selector:
    path: tuple[str, ...]
    operator: str
    value: str
    pattern: re.Pattern[str] | None = None

    def matches(self, snapshot: Snapshot) -> bool:
        found = _field(snapshot, self.path)
        match self.operator:
            case "":
                return found is not None
            case "==":
                return found == self.value
            case "!=":
                return (found or "") != self.value
            case _:
                return self.pattern is not None and self.pattern.search(found or "") is not None


def _field(snapshot: Snapshot, path: tuple[str, ...]) -> str | None:
    match path[0]:
        case "name":
            return snapshot.key
        case "parent":
            return snapshot.parent
        case "kind":
            return _KINDS[snapshot.kind]
        case "labels":
            return snapshot.labels.get(".".join(path[1:]))
        case _:
            return None


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def parse(self) -> list[_Selector]:
        if not self._text:
            return []
        selectors = [self._selector()]
        while self._position < len(self._text):
            if not self._skip(","):
                raise self._error("a comma")
            selectors.append(self._selector())
        return selectors

    def _selector(self) -> _Selector:
        path = [self._name()]
        while self._skip("."):
            path.append(self._name())
        if self._position == len(self._text) or self._text[self._position] == ",":
            return _Selector(tuple(path), "", "")
        self._take(_BLANKS)
        operator = self._take(_OPERATOR)
        if operator not in ("==", "!=", "~="):
            raise self._error("==, != or ~=")
        self._take(_BLANKS)
        value = self._quoted('"', "/", r"\|") if operator == "~=" else self._quoted('"')
        if value is None:
            value = self._take(_VALUE)
        if value is None:
            raise self._error("a value")
        return _Selector(tuple(path), operator, value, _pattern(value) if operator == "~=" else None)

    def _name(self) -> str:
        self._take(_BLANKS)
        quoted = self._quoted('"')
        name = self._take(_FIELD) if quoted is None else quoted
        if name is None:
            raise self._error("a field")
        return name

    def _quoted(self, *quotes: str) -> str | None:
        for quote in quotes:
            match = _QUOTED[quote].match(self._text, self._position)
            if match is not None:
                self._position = match.end()
                return self._unescape(match[1], quote[-1])
            if self._text.startswith(quote[-1], self._position):
                raise self._error("an end of what is quoted")
        return None

    def _unescape(self, text: str, quote: str) -> str:
        def plain(match: re.Match[str]) -> bytes:
            octal, byte, short, long, simple = match.groups()
            if octal or byte:
                return bytes([int(octal, 8) & 0xFF if octal else int(byte, 16)])
            if short or long:
                number = int(short or long, 16)
                if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                    raise self._error("a character")
                return chr(number).encode()
            if simple != quote and simple not in _SIMPLE:
                raise self._error("an escape of Go")
            return _SIMPLE.get(simple, simple).encode()

        pieces: list[bytes] = []
        end = 0
        for match in _ESCAPE.finditer(text):
            pieces += text[end : match.start()].encode(), plain(match)
            end = match.end()
        return b"".join([*pieces, text[end:].encode()]).decode(errors="replace")

    def _skip(self, character: str) -> bool:
        found = self._text.startswith(character, self._position)
        self._position += found
        return found

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        match = pattern.match(self._text, self._position)
        if match is None:
            return None
        self._position = match.end()
        return match[0]

    def _error(self, wanted: str) -> UsageError:
        return UsageError(
            f"filter {self._text[:200]!r}: {wanted} is wanted at character {self._position + 1}"
        )


def _pattern(value: str) -> re.Pattern[str] | None:
    """None, which matches nothing, for what is no regular expression: so does containerd."""
    try:
        return re.compile(value)
    except re.error:
        return None
