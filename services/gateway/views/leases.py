"""Who of several gateways does what only one may do: a row with an expiry, for a paused leader must lose it."""

import asyncpg

EXPIRY = 3.0
RENEW = 1.0


async def hold(db: asyncpg.Pool, name: str, holder: str, *, expiry: float = EXPIRY) -> bool:
    """Takes the lease, or keeps it. The database's clock decides."""
    row = await db.fetchrow(
        """insert into leases (name, holder, until) values ($1, $2, clock_timestamp() + make_interval(secs => $3))
           on conflict (name) do update set holder = $2, until = clock_timestamp() + make_interval(secs => $3)
            where leases.holder = $2 or leases.until < clock_timestamp()
           returning true""",
        name,
        holder,
        expiry,
    )
    return row is not None


async def release(db: asyncpg.Pool, name: str, holder: str) -> None:
    """So that the next one needn't wait for the expiry."""
    await db.execute("delete from leases where name = $1 and holder = $2", name, holder)
