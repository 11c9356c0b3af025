"""What a projection may do to its rows, folded per batch so that a row is written once however often it changed."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import Table


class Put(msgspec.Struct, frozen=True, gc=False):
    """A new row; one that is there already stays as it is."""

    table: Table
    row: Mapping[str, Any]


class Change(msgspec.Struct, frozen=True, gc=False):
    """These columns of the row with this key, if it is there."""

    table: Table
    key: Any
    columns: Mapping[str, Any]


class Drop(msgspec.Struct, frozen=True, gc=False):
    """Every row whose column holds one of these values."""

    table: Table
    column: str
    values: list[Any]


class DropOf(msgspec.Struct, frozen=True, gc=False):
    """Every row whose column holds the key of one of the owners: rows of another table whose column holds one of these values."""

    table: Table
    column: str
    owners: Table
    owners_column: str
    values: list[Any]


class Merge(msgspec.Struct, frozen=True, gc=False):
    """Keys laid over a JSON column, the rest of it kept."""

    table: Table
    key: Any
    column: str
    value: Mapping[str, Any]


Operation = Put | Change | Drop | DropOf | Merge


class Batch:
    """Operations in the order of the log. Rows are merged by key; a Drop or Merge first writes what stands before it."""

    def __init__(self) -> None:
        self._puts: dict[Table, dict[Any, _New]] = defaultdict(dict)
        self._changes: dict[Table, dict[Any, dict[str, Any]]] = defaultdict(dict)
        self._statements: list[tuple[str, Sequence[Any]]] = []

    def add(self, operations: Iterable[Operation]) -> None:
        for operation in operations:
            table = operation.table
            match operation:
                case Put(row=row):
                    key = row[_key(table)]
                    if key in self._changes[table]:
                        self._settle(table)
                    self._puts[table].setdefault(key, _New(dict(row)))
                case Change(key=key, columns=columns):
                    if new := self._puts[table].get(key):
                        new.change(columns)
                    else:
                        self._changes[table].setdefault(key, {}).update(columns)
                case Drop(column=column, values=values):
                    self._settle(table)
                    self._statements.append((f'delete from "{table.name}" where "{column}" = any($1)', [values]))
                case DropOf(column=column, owners=owners, owners_column=of, values=values):
                    self._settle(table)
                    self._settle(owners)
                    sql = f'delete from "{table.name}" where "{column}" in (select "{_key(owners)}" from "{owners.name}" where "{of}" = any($1))'
                    self._statements.append((sql, [values]))
                case Merge(key=key, column=column, value=value):
                    self._settle(table)
                    sql = f'update "{table.name}" set "{column}" = ("{column}"::jsonb || $2::jsonb)::json where "{_key(table)}" = $1'
                    self._statements.append((sql, [key, value]))

    async def write(self, connection: asyncpg.Connection) -> None:
        for table in dict.fromkeys((*self._puts, *self._changes)):
            self._settle(table)
        for sql, arguments in self._statements:
            await connection.execute(sql, *arguments)
        self._statements.clear()

    def _settle(self, table: Table) -> None:
        """One statement for all rows that are alike in what changed; they travel as one JSON document."""
        new: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for put in self._puts.pop(table, {}).values():
            new[tuple(put.changed)].append(put.row)
        for changed, rows in new.items():
            self._statements.append((_insert(table, tuple(rows[0]), changed), [rows]))
        alike: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for key, change in self._changes.pop(table, {}).items():
            alike[tuple(change)].append({_key(table): key, **change})
        for columns, rows in alike.items():
            self._statements.append((_update(table, columns), [rows]))


class _New:
    """A row to be put, and what was changed since: that counts also where another one is there already."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.row = row
        self.changed: dict[str, None] = {}

    def change(self, columns: Mapping[str, Any]) -> None:
        self.row.update(columns)
        self.changed.update(dict.fromkeys(columns))


@cache
def _insert(table: Table, columns: tuple[str, ...], changed: tuple[str, ...]) -> str:
    names, sets = ", ".join(f'"{name}"' for name in columns), ", ".join(f'"{name}" = excluded."{name}"' for name in changed)
    there = f'("{_key(table)}") do update set {sets}' if changed else "do nothing"
    return f'insert into "{table.name}" ({names}) select {names} from json_populate_recordset(null::"{table.name}", $1) on conflict {there}'


@cache
def _update(table: Table, columns: tuple[str, ...]) -> str:
    key, sets = _key(table), ", ".join(f'"{name}" = new."{name}"' for name in columns)
    return f'update "{table.name}" old set {sets} from json_populate_recordset(null::"{table.name}", $1) new where old."{key}" = new."{key}"'


@cache
def _key(table: Table) -> str:
    (column,) = table.primary_key.columns
    return column.name
