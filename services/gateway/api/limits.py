"""What all families do alike about limits: who is counted, what an answer's headers say, and the refusal."""

from ipaddress import IPv6Address, ip_address

from services.gateway.api.problems import Refused
from services.gateway.limits import Standing

MESSAGE = "Too many requests"


def caller(client: tuple[str, int] | None) -> str:
    """By the other end of the connection, fit for a subject. An IPv6 host has a whole /64 to call from."""
    try:
        address = ip_address(client[0].partition("%")[0]) if client else None
    except ValueError:
        address = None
    if address is None:
        return "nowhere"
    if isinstance(address, IPv6Address):
        if (mapped := address.ipv4_mapped) is None:
            return f"net-{int(address) >> 64:016x}"
        address = mapped
    return f"ip-{str(address).replace('.', '-')}"


def headers(standing: Standing) -> list[tuple[bytes, bytes]]:
    return [
        (b"x-ratelimit-limit", b"%d" % standing.limit),
        (b"x-ratelimit-remaining", b"%d" % standing.remaining),
        (b"x-ratelimit-reset", b"%d" % standing.reset),
    ]


def refusal(standing: Standing) -> Refused:
    return Refused(429, MESSAGE, context={"limit": standing.limit, "retry_after": standing.retry_after}, headers={"Retry-After": str(standing.retry_after)})
