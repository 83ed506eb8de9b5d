"""The streams: how they are made, and what an existing one must be like to be trusted with the ledger."""

from collections.abc import Mapping, Sequence
from typing import Final

from leasehold.events import limits
from leasehold.events.errors import InvalidInputError, UnavailableError
from leasehold.events.subjects import EVENTS_STREAM, LEDGER_STREAM, OBSERVED_STREAM, Subjects
from leasehold.services.connection import Connection, connect, disconnect
from leasehold.services.credentials import Credential
from leasehold.services.ledger import api

HEADERS_BYTES_MAX: Final = 4 * 1024
"""The server counts the headers of a message into its size."""
DUPLICATE_WINDOW_NS: Final = 120 * 10**9
HINT_STREAM: Final = "KV_HINT"
"""The bucket HINT of the key-value store: which allocator decides (`services/allocator/hint.py`)."""
HINT_AGE_NS_MAX: Final = 10 * 10**9
OBSERVED_BYTES_TOTAL_MAX: Final = 512 * 1024 * 1024
OBSERVED_AGE_NS_MAX: Final = 7 * 24 * 3_600 * 10**9
EVENTS_BYTES_TOTAL_MAX: Final = 384 * 1024 * 1024
"""Some 300,000 events. The server sets a stream's bytes aside; with those of OBSERVED they must fit into 1 GiB."""

_NEVER_LOSES: Final[Mapping[str, object]] = {
    "storage": "file",
    "retention": "limits",
    "discard": "new",
    "max_msgs": -1,
    "max_bytes": -1,
    "max_age": 0,
    "max_msgs_per_subject": -1,
    "no_ack": False,
    "sealed": False,
    "deny_delete": True,
    "deny_purge": True,
    "allow_rollup_hdrs": False,
    "allow_msg_ttl": False,
    "allow_msg_schedules": False,
    "allow_msg_counter": False,
    "persist_mode": "",
    "mirror": None,
    "sources": None,
    "subject_transform": None,
}
"""What an existing LEDGER must be like, with what the server leaves out when it is so."""


def ledger_config(subjects: Subjects, replicas: int) -> dict[str, object]:
    """LEDGER: everything for ever, one literal subject."""
    return {
        "name": LEDGER_STREAM,
        "subjects": [subjects.ledger],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        "max_msg_size": limits.RECORD_BYTES_MAX + HEADERS_BYTES_MAX,
        "duplicate_window": DUPLICATE_WINDOW_NS,
        "num_replicas": replicas,
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": True,
    }


def observed_config(subjects: Subjects, replicas: int) -> dict[str, object]:
    """OBSERVED: an inbox. What is lost of it can be reported again, so it is bounded.

    It is synced like the ledger all the same: with `persist_mode: async` a killed server forgets messages that were
    acknowledged and taken in, and gives their sequences out again.
    """
    return {
        "name": OBSERVED_STREAM,
        "subjects": [subjects.inbox_all],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": OBSERVED_BYTES_TOTAL_MAX,
        "max_age": OBSERVED_AGE_NS_MAX,
        "max_msgs_per_subject": limits.OBSERVED_KEPT_PER_SOURCE,
        "max_msg_size": limits.OBSERVED_BYTES_MAX + HEADERS_BYTES_MAX,
        "duplicate_window": DUPLICATE_WINDOW_NS,
        "num_replicas": replicas,
        "allow_direct": True,
    }


def events_config(subjects: Subjects, replicas: int) -> dict[str, object]:
    """EVENTS, the feed: bounded, since all of it can be told again from LEDGER.

    Feeds publish to `told`; what the stream has taken is kept and sent on as `evt`, in its order and once, to everybody
    who listens. So a message that was refused, because another feed was faster, reaches nobody. It is bounded in bytes
    and not in age: its last message says how far was told, and must not go away.
    """
    config: dict[str, object] = {
        "name": EVENTS_STREAM,
        "subjects": [subjects.told_all],
        "subject_transform": {"src": subjects.told_all, "dest": subjects.events_all},
        "republish": {"src": subjects.events_all, "dest": subjects.events_all},
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": EVENTS_BYTES_TOTAL_MAX,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        "max_msg_size": limits.RECORD_BYTES_MAX + HEADERS_BYTES_MAX,
        "num_replicas": replicas,
        "allow_direct": True,
    }
    # What a killed server forgets of it is told again. With several servers none of them may acknowledge early.
    return config | {"persist_mode": "async"} if replicas == 1 else config


def hint_config(replicas: int) -> dict[str, object]:
    """The hint who decides: in memory, since nothing depends on it, and a full disk does not matter to it."""
    return {
        "name": HINT_STREAM,
        "subjects": ["$KV.HINT.>"],
        "storage": "memory",
        "retention": "limits",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_msg_size": HEADERS_BYTES_MAX,
        "max_bytes": 16 * HEADERS_BYTES_MAX,
        "max_age": HINT_AGE_NS_MAX,
        "num_replicas": replicas,
        "allow_direct": True,
    }


async def ensure_streams(connection: Connection, subjects: Subjects, *, replicas: int = 1) -> None:
    """Make the streams unless they are there, and refuse ones that cannot be trusted. May be called at every start.

    Raises:
        InvalidInputError: a stream of that name is there, but would lose records, or belongs to another cluster.
        UnavailableError: the server does not answer.
    """
    await _ensure(connection, ledger_config(subjects, replicas))
    await _ensure(connection, observed_config(subjects, replicas))
    await _ensure(connection, events_config(subjects, replicas))
    await _ensure(connection, hint_config(replicas))


async def make_streams(credential: Credential, urls: Sequence[str], *, replicas: int) -> None:
    """As `ensure_streams`, as a keeper, through a connection of its own.

    Args:
        urls: Where the bus is; empty for where the credential says.

    Raises:
        InvalidInputError, UnavailableError: as `ensure_streams` and `connect` do.
    """
    connection = await connect(urls or credential.urls, credential=credential, name="keeper")
    try:
        await ensure_streams(connection, Subjects(credential.cluster), replicas=replicas)
    finally:
        await disconnect(connection)


async def _ensure(connection: Connection, config: Mapping[str, object]) -> None:
    name = str(config["name"])
    info = await api.stream_info(connection, name)
    if info.error is not None:
        info = await api.call(connection, f"STREAM.CREATE.{name}", config, api.StreamInfo)
        if info.error is not None and info.error.err_code == api.STREAM_EXISTS_OTHERWISE:
            # Another process was faster; what it made is judged like any other.
            info = await api.stream_info(connection, name)
    if info.error is not None:
        raise UnavailableError(f"stream {name} cannot be made: {info.error.description} ({info.error.err_code})")
    differences = _differences(info.config, config)
    if differences:
        raise InvalidInputError(f"the existing stream {name} cannot be used: {'; '.join(differences)}", field="stream")


def _differences(existing: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    needed: dict[str, object] = {"subjects": wanted["subjects"], "storage": wanted["storage"]}
    if wanted["name"] == LEDGER_STREAM:
        needed.update(_NEVER_LOSES)
    found = [
        f"{key} is {existing[key]!r}, must be {value!r}"
        for key, value in needed.items()
        if existing.get(key, value) != value
    ]
    found += [
        f"{key} is missing, must be {value!r}" for key, value in needed.items() if value is True and key not in existing
    ]
    # What the server leaves out here, it does not do.
    found += [
        f"{key} is {existing.get(key)!r}, must be {wanted[key]!r}"
        for key in ("subject_transform", "republish")
        if key in wanted and existing.get(key) != wanted[key]
    ]
    return found + _too_small(existing, wanted)


def _too_small(existing: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    found = []
    size, size_min = existing.get("max_msg_size", -1), wanted["max_msg_size"]
    assert isinstance(size, int) and isinstance(size_min, int)
    if 0 <= size < size_min:
        found.append(f"max_msg_size is {size}, must be at least {size_min}")
    replicas, replicas_min = existing.get("num_replicas", 1), wanted["num_replicas"]
    assert isinstance(replicas, int) and isinstance(replicas_min, int)
    # A hint that went lost with its servers is made again by whoever misses it first, as small as can be.
    if replicas < replicas_min and wanted["name"] != HINT_STREAM:
        found.append(f"num_replicas is {replicas}, must be at least {replicas_min}")
    return found
