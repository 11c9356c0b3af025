"""Which addresses may be connected to on somebody else's behalf: public ones, and those that the operator allows."""

import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PORTS = {"http": 80, "https": 443}
LONGEST = 2048

# Python's is_global alone takes 9 of these forms for public.
_FORBIDDEN = [
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24"),
        *("192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16"),
        *("3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
]
_ISATAP = (0x5EFE, 0x02005EFE)


class Forbidden(OSError):
    """Nobody may make us connect there."""


def networks(setting: str) -> list[Network]:
    """ValueError when it isn't a list of networks."""
    return [ipaddress.ip_network(part.strip()) for part in setting.split(",") if part.strip()]


def may_connect(address: str, allowed: Sequence[Network]) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped  # the connection would be one of IPv4
    if _within(ip, allowed):
        return True
    if isinstance(ip, ipaddress.IPv6Address) and (int(ip) >> 32) & 0xFFFFFFFF in _ISATAP:
        return False
    return ip.is_global and not _within(ip, _FORBIDDEN)


def guard(allowed: Sequence[Network]) -> Callable[[Any], socket.socket]:
    """Makes the sockets of an HTTP client. Asked with the address that is about to be connected to: what a name meant before doesn't count."""

    def make(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if not may_connect(address[0], allowed):
            raise Forbidden(errno.EACCES, f"{address[0]} is no public address")
        return socket.socket(family, kind, protocol)

    return make


def why_not_url(url: str, allowed: Sequence[Network]) -> str:
    """Empty when it may be registered. Names are not looked up here: what they mean counts when it is connected to."""
    if len(url) > LONGEST or not url.isascii() or any(character <= " " or character in '\\"<>^`{|}\x7f' for character in url):
        return f"must be a URL of at most {LONGEST} ASCII characters, the rest of them encoded"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"is no URL: {error}"
    if parts.scheme not in PORTS or not parts.hostname:
        return "must be an http:// or https:// URL with a host"
    if parts.username is not None or parts.password is not None:
        return "must not carry a user or password"
    if port == 0:
        return "must not name port 0"
    if "%" in parts.hostname:
        return "must not name a zone"
    host = parts.hostname.rstrip(".")
    addresses = ["127.0.0.1"] if host == "localhost" or host.endswith(".localhost") else _literal(host)
    if not all(may_connect(address, allowed) for address in addresses):
        return "points to an address that is not public. The operator can allow networks with TRAINYARD_EGRESS_ALLOW"
    return ""


def _literal(host: str) -> list[str]:
    """The address that a host in digits means, in all the forms that the system's resolver understands: 127.1, 0x7f.1, 2130706433."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)]
    except (OSError, UnicodeError):
        return []


def _within(ip: Address, networks: Sequence[Network]) -> bool:
    return any(ip.version == network.version and ip in network for network in networks)
