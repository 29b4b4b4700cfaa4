"""Settings put into a TOML file in place. Each says in a comment that it is ours and what was there before:

    snapshotter = "lazyfs"  # by lazyfs install, was: "overlayfs"

so that it can be taken back later, whatever else was edited meanwhile. Everything else stays as it was written.
"""

import tomllib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import tomlkit
from tomlkit.container import Container
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Item, Table

from lazyfs.errors import NodeError, UsageError

MARK = "by lazyfs install"
_BEFORE = f"{MARK}, was: "

Path = tuple[str, ...]


class TomlEdits:
    """The text of one file, being edited. ``name`` is for errors."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        try:
            self._document = tomlkit.parse(text)
        except (TOMLKitError, ValueError, RecursionError) as error:
            raise UsageError(f"{name} is not TOML: {error}", hint="mend it first") from error

    def get(self, *path: str) -> Any:
        """The plain value, None where there is none."""
        found: Any = self._document.unwrap()
        for name in path:
            if not isinstance(found, Mapping) or name not in found:
                return None
            found = found[name]
        return found

    def put(self, path: Path, value: str | bool | int | list[Any]) -> None:
        """Set one value, whatever was there."""
        before = self.get(*path)
        if before == value and type(before) is type(value):
            return
        table = self._table(path[:-1])
        mark = MARK
        if path[-1] in table:
            note = _comment(_item(table, path[-1]))
            # Of two settings of ours the first knows what the owner had.
            mark = note if note.startswith(MARK) else f"{_BEFORE}{_one_line(before)}"
            mark += f" # {note}" if note and not note.startswith(MARK) else ""
        item = tomlkit.item(value)
        item.comment(mark)
        table[path[-1]] = item

    def append(self, path: Path, tables: list[dict[str, str]]) -> None:
        """Add tables to an array of tables; all that is theirs bears the mark."""
        array = self._table(path[:-1]).setdefault(path[-1], tomlkit.aot())
        if not isinstance(array, AoT):
            raise UsageError(
                f"{self._name}: {path[-1]} is written as [{{…}}]",
                hint=f"write its tables one by one: [[{'.'.join(path)}]]",
            )
        for each in tables:
            table = tomlkit.table()
            for name, value in each.items():
                table[name] = item = tomlkit.item(value)
                item.comment(MARK)
            array.append(table)

    def take_back(self, only: Path = ()) -> None:
        """Undo every `put` and `append` of anybody who used these marks, below ``only`` if given."""
        table: Any = self._document
        for name in only:
            if name not in table:
                return
            table = table[name]
        _take_back(table)
        for length in range(len(only), 0, -1):
            _drop_if_empty(self._document, only[:length])

    @property
    def text(self) -> str:
        """NodeError when the file cannot be written as it is meant."""
        text = self._document.as_string()
        if tomllib.loads(text) != self._document.unwrap():
            raise NodeError(
                f"{self._name} is laid out in a way that cannot be edited safely",
                hint="write its tables in order, or make the changes of --dry-run by hand",
            )
        return text

    def _table(self, path: Path) -> MutableMapping[str, Any]:
        table: MutableMapping[str, Any] = self._document
        for name in path:
            if name not in table:
                table[name] = tomlkit.table(is_super_table=True)
            below = table[name]
            if not isinstance(below, MutableMapping):
                raise UsageError(f"{self._name}: {'.'.join(path)} is no table", hint="mend it first")
            table = below
        return table


def _take_back(table: Any) -> None:
    for name in list(table):
        value = _item(table, name)
        if isinstance(value, AoT):
            _take_back_tables(table, name, value)
        elif isinstance(value, MutableMapping):
            marked = _has_mark(value)
            _take_back(value)
            if marked and not len(value):
                del table[name]
        elif (note := _comment(value)).startswith(MARK):
            if note.startswith(_BEFORE):
                before: Any = tomlkit.parse(f"x = {note.removeprefix(_BEFORE)}").item("x")
                comment = before.trivia.comment
                table[name] = before
                # It has got the comment of what it takes the place of.
                _item(table, name).trivia.comment = comment
            else:
                del table[name]


def _take_back_tables(parent: Any, name: str, tables: AoT) -> None:
    kept = [each for each in tables if not all(_comment(_item(each, key)).startswith(MARK) for key in each)]
    if len(kept) == len(tables):
        return
    del parent[name]
    if kept:
        parent[name] = array = tomlkit.aot()
        for each in kept:
            array.append(each)


def _drop_if_empty(document: Any, path: Path) -> None:
    table = document
    for name in path[:-1]:
        if name not in table:
            return
        table = table[name]
    if path[-1] in table and not len(table[path[-1]]):
        del table[path[-1]]


def _has_mark(value: Any) -> bool:
    return any(_comment(item).startswith(MARK) for item in _items(value))


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, AoT):
        for each in value:
            yield from _items(each)
    elif isinstance(value, MutableMapping):
        for name in value:
            yield from _items(_item(value, name))
    else:
        yield value


def _item(table: Any, name: str) -> Any:
    """What tomlkit keeps of it; of a boolean, it gives the mere value otherwise."""
    container = table.value if isinstance(table, Table) else table
    return container.item(name) if isinstance(container, Container) else table[name]


def _comment(item: Any) -> str:
    if not isinstance(item, Item) or isinstance(item, Table):
        return ""
    comment: str = str(item.trivia.comment)
    return comment.lstrip("#").strip()


def _one_line(value: Any) -> str:
    text: str = tomlkit.item(value).as_string()
    return text.replace("\n", " ")
