"""Each recorded exchange once more, with our transport and reading in the place of the client that was there.

What is asked is what was asked then. What must come of it is told here for everything that is no plain success.
"""

from pathlib import Path
from typing import Any

import pytest

from leasehold.events.errors import (
    XendError,
    XendFailedError,
    XendNoReplyError,
    XendNotFoundError,
    XendReplyError,
    XendUnsupportedError,
)
from leasehold.services.xend import answers, http, rpc, sxp
from leasehold.services.xend.http import Request
from tests.xend.replay import Recording, recordings, replaying

FAILED, MISSING, UNSUPPORTED = XendFailedError, XendNotFoundError, XendUnsupportedError
SILENT, UNREADABLE = XendNoReplyError, XendReplyError
ERRORS: dict[int, tuple[type[XendError], str]] = {
    28: (FAILED, "Cannot pause privileged domain 0"),
    29: (FAILED, "int() argument must be a string or a number, not 'NoneType'"),
    31: (MISSING, "there is no domain 'web1'"),
    34: (FAILED, "already exists as domain"),
    35: (FAILED, "'name'"),
    38: (FAILED, "invalid literal for int() with base 10: 'h'"),
    40: (FAILED, "Domain 0 cannot be shutdown"),
    43: (FAILED, "invalid literal for int() with base 10: '64MB'"),
    44: (FAILED, "Missing parameter: target"),
    46: (FAILED, "memory_dynamic_max must be less than or equal to memory_static_max"),
    58: (FAILED, "Unknown device type: toaster"),
    59: (FAILED, "Missing parameter: type"),
    62: (FAILED, "device not a valid device type"),
    64: (FAILED, "Invalid mode"),
    65: (FAILED, "object of type 'NoneType' has no len()"),
    68: (FAILED, "Missing parameter: force"),
    70: (FAILED, "Device 51728 not connected"),
    73: (FAILED, 'The mac "00:16:3e:77:88:99" is already defined'),
    82: (FAILED, "failed to assign device 0000:03:00.1 that has already been assigned to other domain."),
    83: (FAILED, "pci: PCI Backend and pci-stub don't own device 0000:00:1f.2"),
    89: (FAILED, "list index out of range"),
    91: (FAILED, "Cannot detach when pci platform does not exist"),
    92: (FAILED, "Missing parameter: dev"),
    98: (SILENT, "no reply"),
    100: (UNSUPPORTED, "Operation not implemented: pciinfo"),
    101: (MISSING, "Not found: pciinfo"),
    109: (UNSUPPORTED, "Operation not implemented: restart"),
    112: (FAILED, "406 Invalid request"),
    113: (FAILED, "406 Invalid request"),
    115: (FAILED, "406 Invalid request"),
    116: (FAILED, "406 Invalid request"),
    121: (FAILED, "Configuration error list index out of range"),
    122: (FAILED, "Configuration error 'NoneType' object has no attribute '__getitem__'"),
    124: (FAILED, "Domain 'web1' already exists with ID '1'"),
    125: (UNSUPPORTED, "Request method not supported (PUT)"),
    130: (UNREADABLE, "a page for browsers"),
    134: (MISSING, "Not found: nothing"),
    136: (MISSING, "there is no domain 'nope'"),
    137: (MISSING, "there is no domain '77'"),
    145: (FAILED, "Cannot save privileged domain 0"),
    146: (FAILED, "can't write guest state file /nonexistent/dir/x: No such file or directory"),
    148: (FAILED, "can't read guest state file /nonexistent: No such file or directory"),
    149: (FAILED, "Missing parameter: file"),
    151: (FAILED, "Domain is already running"),
    152: (FAILED, "Domain is not halted."),
    157: (FAILED, "domain_configure() takes exactly 2 arguments (3 given)"),
    158: (FAILED, "Cannot destroy privileged domain 0"),
    175: (MISSING, "there is no domain 'web1'"),
    179: (MISSING, "there is no domain 'web1'"),
    190: (FAILED, "Hotplug scripts not working."),
    191: (MISSING, "there is no domain 'gone'"),
    211: (FAILED, "failed to assign device 0000:03:00.0 that has already been assigned to other domain."),
}
"""By number: what comes instead of a value, and a part of what it says."""


def request_of(recording: Recording) -> Request:
    """What was asked, as our transport sends it."""
    head, _, body = recording.request.partition(b"\r\n\r\n")
    method, target, _ = head.decode("latin-1").split("\r\n", 1)[0].split(" ")
    return Request(recording.name, method, target, body if method == "POST" else b"")


def value_of(reply: http.Reply, recording: Recording) -> Any:
    """What our reading makes of the answer."""
    if b"/RPC2" in recording.request[:20]:
        return rpc.value_of(reply, recording.name)
    read = answers.text_of if reply.content_type == "text/plain" else answers.value_of
    return read(reply, recording.name)


@pytest.mark.parametrize("recording", recordings().values(), ids=lambda each: f"{each.number:03}-{each.name}")
async def test_a_recording_gives_what_is_documented(recording: Recording, tmp_path: Path) -> None:
    """The recorded answer, on a connection that stays open or not as it did then, is the value in it, or its error."""
    expected = ERRORS.get(recording.number)
    timeout_s = 0.3 if not recording.answer else 20.0
    async with replaying(tmp_path, recording.answer, lingers=recording.lingers or not recording.answer) as replay:
        try:
            reply = await http.exchange(replay.address, request_of(recording), timeout_s=timeout_s)
            value = value_of(reply, recording)
        except XendError as error:
            assert expected is not None, f"{type(error).__name__}: {error}"
            assert type(error) is expected[0]
            assert expected[1] in str(error)
            assert error.op == recording.name
            return
    assert expected is None, f"{expected} was expected, and {value!r} came"
    if b"/RPC2" in recording.request[:20]:
        assert b"<fault>" not in recording.body
    elif reply.content_type == "text/plain":
        assert value == reply.body
    elif not reply.body:
        assert value == []
    else:
        assert value == sxp.read_all(reply.body)[0]
        assert b"xend.err" not in reply.body
    (asked,) = replay.asked
    assert asked.headers["accept"] == "application/sxp"
    assert "user-agent" not in asked.headers


def test_every_error_expected_here_is_recorded() -> None:
    """No line of the table is for a recording that is not here."""
    assert set(ERRORS) <= set(recordings())
