"""Tables of PostgreSQL servers as Arrow record batches, through ADBC.

The rows of a table come in one read-only transaction and, in a table that nobody writes to, in the
same order every time, so that a seed draws the same sample. Passwords belong into PGPASSWORD or
~/.pgpass: the list of processes shows a command line to everybody. Messages never show one.

Values are hashed in the form in which Arrow has them: dates, times and numbers as elsewhere, uuid
as its 16 bytes, json and jsonb by their text. A numeric is hashed by its text, without trailing
zeros where its type does not fix the scale, since 1.0 and 1.00 are one value. Other types (inet,
ranges, bits) are hashed by the bytes that the server sends. Arrays and intervals are refused, by
name, unless `--serialize_nested` is given.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

from experiments.ndv.partitions import (
    Partition,
    engine,
    listed,
    plain,
    plain_schema,
    quoted,
    spelled,
    spellings,
)

PREFIXES = ("postgresql://", "postgres://")
CONNECT_TIMEOUT_S = 10
_SETTINGS = (
    "SET TRANSACTION READ ONLY",
    # Both let a scan begin or go on elsewhere than at the first row.
    "SET LOCAL synchronize_seqscans = off",
    "SET LOCAL max_parallel_workers_per_gather = 0",
)
_TABLES = """
    SELECT n.nspname::text, c.relname::text, pg_table_is_visible(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname <> 'information_schema'
      AND n.nspname NOT LIKE 'pg\\_%'
    ORDER BY 1, 2
"""


def is_address(text: str) -> bool:
    """Whether an input names a PostgreSQL server.

    Example:
      >>> is_address("postgresql://me@host/shop"), is_address("shop.parquet")
      (True, False)
    """
    return text.startswith(PREFIXES)


def without_secrets(text: str, address: str) -> str:
    """A text in which the password of an address, in any spelling, is `***`.

    Example:
      >>> address = "postgresql://me:t%6Fp@host/shop"
      >>> without_secrets(f"top of {address}", address)
      '*** of postgresql://me:***@host/shop'
    """
    found = re.match(r"[a-z]+://[^/?@:]*:(.*)@", address)
    secrets = re.findall(r"[?&](?:password|sslpassword)=([^&]*)", address)
    secrets += [found[1]] if found else []
    # The longest first: a password may hold another one.
    spellings = {form for secret in secrets for form in (secret, unquote(secret)) if form}
    for secret in sorted(spellings, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def open_table(address: str, table: str | None) -> Partition:
    """A table, view or foreign table as a partition; its rows are not counted.

    Args:
      address: `postgresql://user@host:port/database`, as libpq reads it.
      table: `schema.name`, or the name alone if it is on the search path; not needed where the
        database has one table.

    Raises:
      ConnectionError: if the server cannot be reached or refuses the user.
      ValueError: if the table does not exist, has to be named, or may not be read.
      ModuleNotFoundError: if the driver is missing.
    """
    shown = without_secrets(address, address)
    with _reading(address, shown) as cursor:
        cursor.execute(_TABLES)
        schema, name = _choose(cursor.fetchall(), table, shown)
        source = f"{quoted(schema)}.{quoted(name)}"
        cursor.execute(f"SELECT * FROM {source} LIMIT 0")
        kinds = cursor.fetch_record_batch().schema

    def batches(names: Sequence[str]) -> Iterator[Any]:
        listed = ", ".join(_selected(kinds.field(name)) for name in names)
        with _reading(address, shown) as cursor:
            cursor.execute(f"SELECT {listed} FROM {source}")
            for batch in cursor.fetch_record_batch():
                yield plain(batch)

    return Partition(f"{shown}:{schema}.{name}", None, plain_schema(kinds), batches)


@contextlib.contextmanager
def _reading(address: str, shown: str) -> Iterator[Any]:
    """A cursor in a transaction that only reads; its errors are told without the password."""
    driver = engine("adbc_driver_postgresql.dbapi")
    try:
        connection = driver.connect(_with_timeout(address))
    except driver.Error as error:
        raise ConnectionError(
            f"{shown} cannot be opened: {_told(error, address)}; check host, port, user and "
            "database, and the password in PGPASSWORD or ~/.pgpass"
        ) from None
    with connection, connection.cursor() as cursor:
        try:
            for setting in _SETTINGS:
                cursor.execute(setting)
            yield cursor
        except driver.Error as error:
            raise ValueError(
                f"{shown} cannot be read: {_told(error, address)}; give another --table or user, "
                "or a view of what can be read"
            ) from None


def _with_timeout(address: str) -> str:
    if "connect_timeout=" in address:
        return address
    return f"{address}{'&' if '?' in address else '?'}connect_timeout={CONNECT_TIMEOUT_S}"


def _told(error: Exception, address: str) -> str:
    """What the server or its library says, on one line, without the query."""
    text = str(error).split("\n\nQuery was:")[0]
    text = re.sub(r"^[A-Z_]+: (\[libpq\] )?(Failed to [a-z ]+: )?", "", " ".join(text.split()))
    return without_secrets(text, address)


def _choose(
    found: Sequence[tuple[str, str, bool]], table: str | None, shown: str
) -> tuple[str, str]:
    """Schema and name of the table that is meant."""
    if table is None and len(found) == 1:
        return found[0][:2]
    for schema, name, is_visible in found:
        if table in spellings(schema, name) or (table in spellings(name) and is_visible):
            return schema, name
    names = [spelled(schema, name) for schema, name, _ in found]
    got = "no --table" if table is None else f"--table={table}"
    raise ValueError(f"{got} for {shown}; give one of {listed(names)}")


def _selected(field: Any) -> str:
    """A column in a query; a numeric of any scale without its trailing zeros."""
    metadata, name = field.metadata or {}, quoted(field.name)
    is_numeric = metadata.get(b"ADBC:postgresql:typname") == b"numeric"
    if is_numeric and metadata.get(b"POSTGRESQL:typmod", b"-1") == b"-1":
        return f"trim_scale({name}) AS {name}"
    return name
