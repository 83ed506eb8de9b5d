"""Where a xend listens, and which of its two protocols is spoken there."""

import os
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec

from leasehold.events.errors import InvalidInputError

HTTP: Final = "http"
"""HTTP with SXP: off in every xend unless its operator turned it on."""
XMLRPC: Final = "xmlrpc"
"""XML-RPC over HTTP, the methods `xend.*`: on by default, on a Unix socket."""
PROTOCOLS: Final = (HTTP, XMLRPC)
_PORTS: Final = {HTTP: 8000, XMLRPC: 8006}
_FORMS: Final = (
    "an address of xend is unix:/PATH (HTTP), http://HOST:PORT, xmlrpc:/PATH or xmlrpc://HOST:PORT; the path may be "
    "left out, and then is the usual one"
)


class Address(msgspec.Struct, frozen=True, gc=False):
    """A Unix socket if there is a `path`, else `host` and `port`; `protocol`: one of `PROTOCOLS`."""

    protocol: str
    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        """As `parse` reads it."""
        if self.path:
            return f"{'unix' if self.protocol == HTTP else XMLRPC}:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}://{host}:{self.port}"


UNIX: Final = Address(HTTP, path="/var/lib/xend/xend-socket")
TCP: Final = Address(HTTP, host="localhost", port=_PORTS[HTTP])
XMLRPC_UNIX: Final = Address(XMLRPC, path="/var/run/xend/xmlrpc.sock")
USUAL: Final = (UNIX, TCP, XMLRPC_UNIX)
"""In the order in which libxend tried them, and then the one that it did not know."""


def parse(text: str) -> Address:
    """Read an address: `unix:/path`, `http://host:port`, `xmlrpc:/path`, `xmlrpc://host:port`.

    Raises:
        InvalidInputError: it is none.
    """
    scheme, _, rest = text.partition(":")
    protocol = {"unix": HTTP, "http": HTTP, "xmlrpc": XMLRPC}.get(scheme, "")
    usual = {"unix": UNIX, "http": TCP, "xmlrpc": XMLRPC_UNIX}
    if protocol and not rest.strip("/"):
        return usual[scheme]
    if rest.startswith("//") and scheme != "unix":
        return _on_network(protocol, text)
    if scheme == "http" or not protocol or "\0" in rest or not os.path.isabs(rest):
        raise InvalidInputError(f"{text[:80]!r} is none: {_FORMS}", field="address")
    return Address(protocol, path=f"/{rest.lstrip('/')}")


def _on_network(protocol: str, text: str) -> Address:
    try:
        parts = urlsplit(text)
        # What has no name in the DNS would be an error of Python's own later.
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port or _PORTS.get(protocol, 0)
    except ValueError as error:
        raise InvalidInputError(f"{text[:80]!r} is none ({error}): {_FORMS}", field="address") from error
    if not protocol or not host or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise InvalidInputError(f"{text[:80]!r} is none: {_FORMS}", field="address")
    return Address(protocol, host=host, port=port)


def listed(addresses: Sequence[Address]) -> str:
    """Addresses for people."""
    return ", ".join(map(str, addresses))
