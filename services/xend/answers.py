"""What xend's answers mean: an error may stand in an answer that says that all went well, and in one that is no SXP."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from leasehold.events.errors import SxpError, XendFailedError, XendNotFoundError, XendReplyError, XendUnsupportedError
from leasehold.services.xend import sxp
from leasehold.services.xend.http import Reply
from leasehold.services.xend.sxp import Sxp

SXP_TYPE: Final = "application/sxp"
_SUCCESS: Final = (200, 201, 202)
_FAULT: Final = re.compile(r"""<Fault 3: (['"])(.*)\1>""", re.DOTALL)
_SHOWN_CHARS_MAX: Final = 500
NO_SUCH_DOMAIN: Final = "there is no domain %r; it may have gone, or have another name by now"


def value_of(reply: Reply, op: str, *, may_be_empty: bool = True) -> Sxp:
    """What xend answered to `op`; an answer without a body is `[]`, which is also SXP's nil.

    Args:
        may_be_empty: False for what was asked, which xend never answers with nothing: an empty list is `()`.

    Raises:
        XendError: it is an error, in whatever way xend says so, or cannot be read.
    """
    _check_status(reply, op)
    if not reply.body:
        if may_be_empty:
            return []
        raise XendReplyError("the answer is empty", op=op, status=reply.status)
    if reply.content_type != SXP_TYPE:
        raise XendReplyError(_not_sxp(reply), op=op, status=reply.status)
    try:
        with uncollected():
            value = sxp.read(reply.body)
    except SxpError as error:
        raise XendReplyError(f"the answer cannot be read: {error}", op=op, status=reply.status) from error
    message = message_of(value)
    if message is not None:
        raise XendFailedError(message, op=op, status=reply.status)
    if reply.status == 202 and b"failed" in reply.body:
        # libvirt, which has known older servers than ours, looks for this.
        raise XendFailedError(shown(reply.body), op=op, status=reply.status)
    return value


def text_of(reply: Reply, op: str) -> bytes:
    """A log, as it is.

    Raises:
        XendError: it is an error, or a page for browsers.
    """
    _check_status(reply, op)
    if reply.body and reply.content_type != "text/plain":
        value_of(reply, op)
        raise XendReplyError("the answer is no text", op=op, status=reply.status)
    return reply.body


def message_of(value: Sxp) -> str | None:
    """What `(xend.err 'message')` says; None: it is no such thing."""
    if not isinstance(value, list) or not value or value[0] != b"xend.err":
        return None
    return " ".join(filter(None, map(sxp.text, value[1:]))) or "xend says no more than that it failed"


def _check_status(reply: Reply, op: str) -> None:
    status = reply.status
    if status in _SUCCESS:
        return
    body = shown(reply.body.removesuffix(b"''"))
    if status == 404:
        fault = _FAULT.fullmatch(body)
        message = NO_SUCH_DOMAIN % fault[2] if fault else body or "Not found"
        raise XendNotFoundError(message, op=op, status=status)
    if status == 501:
        raise XendUnsupportedError(body or reply.reason, op=op, status=status)
    if reply.content_type == SXP_TYPE and status == 500:
        raise XendFailedError(_message_in(reply.body) or body or reply.reason, op=op, status=status)
    if 400 <= status < 600:
        detail = f": {body}" if body else ""
        raise XendFailedError(f"xend answers {status} {reply.reason}{detail}", op=op, status=status)
    raise XendReplyError(f"{status} {reply.reason} is no answer of xend's", op=op, status=status)


def _message_in(body: bytes) -> str | None:
    try:
        return message_of(sxp.read(body))
    except SxpError:
        return None


def _not_sxp(reply: Reply) -> str:
    if reply.body.lstrip()[:5].lower() == b"<html":
        return "a page for browsers came back; something on the way changes what is asked, or this is no xend"
    return f"the answer is {reply.content_type or 'of no type'} instead of {SXP_TYPE}: {shown(reply.body)}"


def shown(body: bytes) -> str:
    """The beginning of a body, for an error."""
    text = body.decode("utf-8", "backslashreplace").strip()
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}…"


@contextmanager
def uncollected() -> Iterator[None]:
    """Without looking for cycles, of which there are none: of a thousand domains that is half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
