r"""xend's XML-RPC: the methods `xend.*`, which `xm` used.

Values come as the lists that SXP writes, so they are turned into what our SXP reader gives: all leaves bytes.

Calls are written by Python's own library, answers are read through its XML reader: a thousand domains are 15 MB and
300,000 values, for which `xmlrpc.client` takes 1.0 s of CPU here, and this 0.45 s.

Facts from xend 4.4 (`xen/util/xmlrpclib2.py`, `xen/xend/server/XMLRPCServer.py`) that a client has to know:

- Fault 3: no such domain. Fault 2: what xend says of every other error. Fault 1: what Python says where xend says
  nothing, also for a method that xend does not have.
- An answer that is one text comes with its line ends, quotes, and all that XML cannot hold written as in a Python
  string (`\n`, `\xc3`); text within lists does not, and if XML cannot hold it the answer is not readable.
- `vcpu_avail` is left out of domains.
- `xend.domains_with_state` leaves out, silently, a domain that it fails to describe.
"""

import re
import xmlrpc.client
from collections.abc import Sequence
from typing import Final, TypeAlias, cast
from xml.etree import ElementTree as ET

from leasehold.events import limits
from leasehold.events.errors import (
    InvalidInputError,
    XendFailedError,
    XendNotFoundError,
    XendReplyError,
    XendUnsupportedError,
)
from leasehold.services.xend import sxp
from leasehold.services.xend.answers import NO_SUCH_DOMAIN, shown, uncollected
from leasehold.services.xend.http import Reply, Request
from leasehold.services.xend.sxp import Sxp

Param: TypeAlias = str | bool | int | Sequence["Param"]

TYPE: Final = "text/xml"
_NO_DOMAIN: Final = 3
_NOT_IN_XML: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-f]{2})|([\x00-\xff]))")
_ESCAPES: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_UNKNOWN_METHOD: Final = re.compile(r'method "[^"]*" is not supported')


def request_of(method: str, params: Sequence[Param]) -> Request:
    """The call of a method, as a request.

    Raises:
        InvalidInputError: XML cannot hold one of these texts.
    """
    _check(params)
    body = xmlrpc.client.dumps(cast("tuple[str, ...]", tuple(params)), method).encode()
    return Request(method, "POST", "/RPC2", body, content_type=TYPE, accept=TYPE)


def _check(params: Sequence[Param]) -> None:
    for each in params:
        if isinstance(each, str):
            if _NOT_IN_XML.search(each):
                raise InvalidInputError(f"{each[:80]!r} has characters that XML-RPC cannot send", field="text")
        elif isinstance(each, Sequence):
            _check(each)


def plain(value: Sxp) -> Param:
    """What was written as SXP, as a parameter; bytes that are no UTF-8 cannot be sent, see `request_of`."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else [plain(each) for each in value]


def value_of(reply: Reply, op: str) -> Sxp:
    """What a method gave, as SXP would; nothing is `[]`.

    Raises:
        XendError: it is a fault, or cannot be read.
    """
    if reply.status != 200 or reply.content_type != TYPE:
        raise XendReplyError(
            f"{reply.status} {reply.reason} is no answer of xend's XML-RPC: {shown(reply.body)}",
            op=op,
            status=reply.status,
        )
    if not reply.body.startswith(b"<") or b"<!" in reply.body or b"\0" in reply.body:
        # In UTF-8, and without definitions, by which a little text would become much.
        raise XendReplyError("the answer is not XML as xend writes it", op=op, status=reply.status)
    with uncollected():
        try:
            root = ET.fromstring(reply.body)  # noqa: S314 - bounded, and without entities
            value = _read(root)
        except (ET.ParseError, IndexError, ValueError, LookupError) as error:
            raise XendReplyError(f"the answer cannot be read: {error}", op=op, status=reply.status) from error
        # Freed here, where that takes no collection either.
        is_fault = len(root) == 1 and root[0].tag == "fault"
        del root
    if is_fault:
        raise _fault(value, op)
    return value


def _read(root: ET.Element) -> Sxp:
    if root.tag != "methodResponse":
        raise ValueError(f"{root.tag} is no methodResponse")
    if root[0].tag == "fault":
        return _value(root[0][0], 0)
    (param,) = root[0]
    value = param[0]
    read = _value(value, 0)
    return _unescaped(read) if isinstance(read, bytes) and _is_text(value) else read


def _is_text(value: ET.Element) -> bool:
    return not len(value) or value[0].tag == "string"


def _value(value: ET.Element, depth: int) -> Sxp:
    if depth > limits.SXP_DEPTH_MAX:
        raise ValueError(f"more than {limits.SXP_DEPTH_MAX} lists within one another")
    if not len(value):
        return (value.text or "").encode()
    typed = value[0]
    match typed.tag:
        case "array":
            return [_value(each, depth + 1) for each in typed[0]]
        case "struct":
            return [[(each[0].text or "").encode(), _value(each[1], depth + 1)] for each in typed]
        case "boolean":
            return b"True" if typed.text == "1" else b"False"
        case "double":
            return sxp.show(float(typed.text or ""))
        case "nil":
            return []
        case "base64":
            raise ValueError("xend sends no base64")
    return (typed.text or "").encode()


def _unescaped(text: bytes) -> bytes:
    def meant(escape: re.Match[bytes]) -> bytes:
        return bytes.fromhex(escape[1].decode()) if escape[1] else _ESCAPES.get(escape[2], escape[2])

    return _ESCAPE.sub(meant, text)


def _fault(value: Sxp, op: str) -> XendFailedError | XendNotFoundError | XendUnsupportedError:
    code = sxp.text(sxp.child(value, "faultCode"))
    message = sxp.text(sxp.child(value, "faultString"))
    number = int(code) if code.isdecimal() and len(code) < 10 else 0
    if number == _NO_DOMAIN:
        return XendNotFoundError(NO_SUCH_DOMAIN % message, op=op, status=number)
    if _UNKNOWN_METHOD.search(message):
        return XendUnsupportedError(message, op=op, status=number)
    return XendFailedError(message or "xend says no more than that it failed", op=op, status=number)
