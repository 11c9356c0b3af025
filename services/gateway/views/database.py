"""The connection to PostgreSQL: JSON passes through unread, and each process meets the schemas it knows."""

from typing import Any

import asyncpg
import msgspec
from asyncpg.exceptions._base import DataError as UnfitArgument

from services.gateway.views.schema import ddl, fingerprint

LIVE = "views"
NEXT = "views_next"

UNFIT = (asyncpg.DataError, UnfitArgument, asyncpg.IntegrityConstraintViolationError)
"""The data is wrong, and would be wrong again."""

DOWN = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.TransactionRollbackError,
)
"""What asyncpg raises, in unrelated families, when the server is away, full or restarting: later it may work. Ask for UNFIT first."""


async def pool(url: str, *, schema: str = LIVE, size: int = 10) -> asyncpg.Pool:
    """Each statement is planned once for all arguments: for a list of projects the planning took twice as long as the rest."""
    settings = _settings(schema) | {"plan_cache_mode": "force_generic_plan"}
    return await asyncpg.create_pool(url, min_size=2, max_size=size, init=_prepare, reset=_nothing, timeout=5, command_timeout=30, server_settings=settings)


async def connection(url: str, *, schema: str = LIVE) -> asyncpg.Connection:
    """A session of its own, for the projector. Its commits needn't reach the disk at once: rows and checkpoint vanish together, and the log heals both."""
    settings = _settings(schema) | {"synchronous_commit": "off"}
    made = await asyncpg.connect(url, timeout=5, command_timeout=60, server_settings=settings)
    await _prepare(made)
    return made


async def ensure_views(db: asyncpg.Pool | asyncpg.Connection, schema: str) -> str:
    """Makes the views where there are none. Says which version they have."""
    async with _session(db) as session, session.transaction():
        await session.execute("select pg_advisory_xact_lock(7215001)")
        if known := await session.fetchval('select fingerprint from core.versions where "schema" = $1', schema):
            return known
        await create_views(session, schema)
        return fingerprint()


async def create_views(session: asyncpg.Connection, schema: str) -> None:
    """Empty views with a checkpoint at the log's beginning, in place of what stands there."""
    await session.execute(f'drop schema if exists "{schema}" cascade; create schema "{schema}"; set local search_path to "{schema}", core')
    for statement in ddl():
        await session.execute(statement)
    await session.execute(
        """insert into core.versions ("schema", fingerprint) values ($1, $2) on conflict ("schema") do update set fingerprint = excluded.fingerprint""",
        schema,
        fingerprint(),
    )
    await session.execute("insert into core.checkpoints (name, seq, log) values ($1, 0, '') on conflict (name) do update set seq = 0, log = ''", schema)


def _session(db: Any) -> Any:
    return db.acquire() if isinstance(db, asyncpg.Pool) else _Borrowed(db)


class _Borrowed:
    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def __aenter__(self) -> asyncpg.Connection:
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        return None


def _settings(schema: str) -> dict[str, str]:
    return {"search_path": f"{schema}, core", "application_name": "trainyard-gateway", "jit": "off", "timezone": "UTC", "datestyle": "ISO"}


async def _prepare(session: Any) -> None:
    await session.set_type_codec("json", schema="pg_catalog", encoder=msgspec.json.encode, decoder=msgspec.Raw, format="binary")
    await session.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=lambda value: b"\x01" + msgspec.json.encode(value), decoder=lambda raw: msgspec.Raw(raw[1:]), format="binary"
    )


async def _nothing(_: Any) -> None:
    """Sessions are left as they were found: resetting one costs a round trip."""
