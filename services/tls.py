"""Which addresses are spoken to with TLS, and whose certificates are believed there."""

import ipaddress
import ssl
from collections.abc import Sequence
from urllib.parse import urlparse

from leasehold.events.errors import InvalidInputError


def is_loopback(host: str) -> bool:
    """Whether only this machine is reached at an address; of names, only `localhost` is believed."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_for(urls: Sequence[str], ca_pem: str) -> ssl.SSLContext | None:
    """How to tell the right server from another, if that has to be told.

    Raises:
        InvalidInputError: an address of another machine would be spoken to in the clear, or the CA is none.
    """
    parts = [urlparse(url) for url in urls]
    secured = bool(ca_pem) or all(each.scheme == "tls" for each in parts)
    for each in parts:
        if not secured and not is_loopback(each.hostname or ""):
            raise InvalidInputError(
                f"{each.hostname} is another machine: it is spoken to with TLS only (a tls:// address, or a credential "
                "that names whose certificates to believe)",
                field="url",
            )
    if not secured:
        return None
    try:
        return ssl.create_default_context(cadata=ca_pem or None)
    except ssl.SSLError as error:
        raise InvalidInputError(f"not a certificate in PEM ({error})", field="ca_pem") from error
