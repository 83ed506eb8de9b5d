"""The AsyncAPI 3.0 document: where which messages go, who may send them, and what comes back.

    document()  # a dict, whole in itself

Leasehold is the application: it *sends* events and *receives* requests. Of the bindings for NATS only the queue of an
operation has a place; what else there is to say of streams stands in texts, and in `docs/feed.md`.
"""

import re
from typing import Any, Final

from leasehold import __version__
from leasehold.events.cloudevents import (
    CONTENT_TYPE,
    HEADER_PREFIX,
    SCHEMA_PREFIX,
    SEQUENCE_DIGITS,
    SPEC_VERSION,
    TYPE_PREFIX,
)
from leasehold.services import permissions
from leasehold.services.describing.messages import (
    ANSWER,
    ASKABLE,
    EVENTS,
    HEARD,
    HEARTBEAT,
    KEPT,
    READING,
    REPORT,
    REQUESTS,
    messages,
)
from leasehold.services.describing.schemas import Schema, described

VERSION: Final = "3.0.0"

_DIGITS: Final = "^(?:0|[1-9][0-9]*)$"
_PARAMETERS: Final = {
    "cluster": "The cluster's name.",
    "principal": "Who asks, as it is authenticated: its own subject is the only one that the server takes from it.",
    "host": "The host.",
    "agent": "The agent on the host, like `watcher`.",
    "kind": "The event's type without its version, like `lease_granted`.",
    "device": "The device's key, `%2E` for each dot and `%25` for each `%`; `_`: none.",
    "lease": "The lease, like `L4352`; `_`: none.",
    "tenant": "The tenant; `_`: none.",
}
_FEED: Final = "leasehold.{cluster}.evt.{host}.{kind}.{device}.{lease}.{tenant}"


def document() -> Schema:
    """The document, as a dict in a fixed order."""
    found = messages()
    template = "#/components/schemas/{name}"
    return {
        "asyncapi": VERSION,
        "id": "urn:leasehold",
        "info": {
            "title": "Leasehold on NATS",
            "version": __version__,
            "description": "Who has which device: requests and questions, the feed of events, and what agents report.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {"bus": _server()},
        "channels": _channels(),
        "operations": _operations(),
        "components": {
            "securitySchemes": {"nkey": _nkey()},
            "messages": {name: _message(name, found[name].kind) for name in found},
            "messageTraits": {"cloudEvent": {"headers": headers()}},
            "schemas": described([each.kind for each in found.values()], template),
        },
    }


def headers() -> Schema:
    """The headers of a message of the feed: a CloudEvent 1.0 in binary mode. Their names are written in lower case."""
    needed: dict[str, Schema] = {
        "specversion": {"const": SPEC_VERSION},
        "id": {
            "description": "The event's position; of all its parts but the first, a dot and the part behind it.",
            "pattern": r"^[1-9][0-9]*(?:\.[1-9][0-9]*)?$",
        },
        "source": {
            "description": "The cluster, the ledger and its era.",
            "pattern": "^urn:leasehold:[^:]+:[^:]+:[0-9]+$",
        },
        "type": {"description": "Behind the prefix, the event's tag.", "pattern": f"^{re.escape(TYPE_PREFIX)}"},
        "time": {"description": "When it was decided, to the nanosecond.", "format": "date-time"},
        "datacontenttype": {"const": CONTENT_TYPE},
        "dataschema": {"description": "The `$id` of the schema of the body.", "pattern": f"^{SCHEMA_PREFIX}"},
        "sequence": {
            "description": "The position with zeros in front: sorts as text.",
            "pattern": f"^[0-9]{{{SEQUENCE_DIGITS}}}$",
        },
        "position": {"description": "The event's place in the ledger.", "pattern": _DIGITS},
        "prevposition": {
            "description": "The position of the event that was told of this host (or of none) before; 0: none.",
            "pattern": _DIGITS,
        },
        "part": {"description": "Which of the parts: an event is told once for each device.", "pattern": _DIGITS},
        "parts": {"description": "How many there are.", "pattern": _DIGITS},
    }
    others: dict[str, Schema] = {
        "subject": {"description": "What it is about, for people."},
        "tenant": {"description": "Whose matter it is."},
        "causationid": {"description": "Principal and id of the request that caused it."},
    }
    return {
        "type": "object",
        "properties": {
            f"{HEADER_PREFIX}{name}": {"type": "string", **said} for name, said in (needed | others).items()
        },
        "required": [f"{HEADER_PREFIX}{name}" for name in needed],
    }


def _server() -> Schema:
    return {
        "host": "{address}",
        "protocol": "nats",
        "description": "A NATS server of the cluster; `leasehold up` says its address.",
        "variables": {"address": {"default": "127.0.0.1:4222"}},
        "security": [{"$ref": "#/components/securitySchemes/nkey"}],
        "bindings": {"nats": {}},
    }


def _nkey() -> Schema:
    return {
        "type": "asymmetricEncryption",
        "description": "An Ed25519 key of NATS (nkey) signs the server's nonce; `leasehold credentials add` makes it.",
    }


def _message(name: str, kind: Any) -> Schema:
    said: Schema = {
        "name": name,
        "title": kind.__name__,
        "contentType": CONTENT_TYPE,
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
        "x-schema": f"{SCHEMA_PREFIX}{name}",
    }
    if name in EVENTS:
        said["name"] = f"{TYPE_PREFIX}{name}"
        said["traits"] = [{"$ref": "#/components/messageTraits/cloudEvent"}]
    return said


def _channel(address: str | None, description: str, names: list[str]) -> Schema:
    said: Schema = {"address": address, "description": description}
    said["messages"] = {name: {"$ref": f"#/components/messages/{name}"} for name in names}
    if address is not None:
        said["parameters"] = {
            name: {"description": text} for name, text in _PARAMETERS.items() if f"{{{name}}}" in address
        }
        if roles := _may_publish(address):
            said["x-roles"] = roles
    return said


def _may_publish(address: str) -> list[str]:
    """The roles that may send there; agents' host stands in their role."""
    wanted = {address, address.replace("{agent}", "*")}
    return [name for name, role in permissions.roles().items() if wanted & set(role.publish)]


def _channels() -> Schema:
    asked = "leasehold.{cluster}.req.{principal}."
    found = messages()
    channels = {
        "events": _channel(
            _FEED,
            "One message for each event, and for each further device of it. What was told before is read from the"
            " stream EVENTS (`leasehold-read.DIRECT.GET.EVENTS`, with `next_by_subj`); see docs/feed.md.",
            list(EVENTS),
        )
    }
    for verb, name in (REQUESTS | ASKABLE).items():
        channels[verb] = _channel(f"{asked}{verb}", str(found[name].kind.__doc__).partition("\n")[0], [name])
    agents = "{cluster}.{way}.{host}.{agent}"
    channels |= {
        "reports": _channel(f"leasehold.{agents}".replace("{way}", "obs"), "What an agent sees.", [REPORT]),
        "heartbeats": _channel(f"leasehold.{agents}".replace("{way}", "alive"), "An agent lives.", [HEARTBEAT]),
        "answers": _channel(None, "Answers to requests, in the inbox of who asked.", [ANSWER]),
        "readings": _channel(None, "Answers to questions.", [READING]),
        "receipts": _channel(None, "Whether a report has been kept.", [KEPT]),
        "hearings": _channel(None, "What the log has of an agent.", [HEARD]),
    }
    return channels


def _operations() -> Schema:
    operations: Schema = {"tellEvents": {"action": "send", "channel": {"$ref": "#/channels/events"}}}
    replies = dict.fromkeys(REQUESTS, "answers") | dict.fromkeys(ASKABLE, "readings")
    replies |= {"reports": "receipts", "heartbeats": "hearings"}
    for channel, reply in replies.items():
        operations[f"take_{channel}"] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{channel}"},
            "reply": {"address": {"location": "$message.header#/reply-to"}, "channel": {"$ref": f"#/channels/{reply}"}},
        }
    return operations
