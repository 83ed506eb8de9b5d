"""Forms: the fields of a POST, and what the pages for browsers are made of."""

import email
import email.policy
from urllib.parse import parse_qs


def fields_of(content_type: str, body: bytes | None) -> dict[str, list[str]]:
    """The fields of a POST body; none if it is of another kind, or had no length."""
    if body is None:
        return {}
    if content_type.partition(";")[0].strip() == "application/x-www-form-urlencoded":
        return parse_qs(body.decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    if not content_type.startswith("multipart/form-data"):
        return {}
    head = b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n"
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    fields: dict[str, list[str]] = {}
    for part in message.iter_parts():
        name, payload = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(payload, bytes):
            fields.setdefault(name, []).append(payload.decode("latin-1").removesuffix("\n").removesuffix("\r"))
    return fields


def buttons(url: str) -> str:
    """What the page of a domain ends with."""

    def form(*inputs: str) -> str:
        return f'<form method="post" action="{url}">{"".join(inputs)}</form>'

    def button(op: str) -> str:
        return f'<input type="submit" name="op" value="{op}">'

    reasons = '<input type="radio" name="reason" value="poweroff" checked>Poweroff'
    reasons += '<input type="radio" name="reason" value="halt">Halt'
    reasons += '<input type="radio" name="reason" value="reboot">Reboot'
    live = '<input type="checkbox" name="live" value="1">Live'
    return "".join(
        (
            form(button("unpause"), button("pause")),
            form(button("destroy")),
            form(button("reset")),
            form(button("shutdown"), reasons),
            form("<br>", button("save"), ' To file: <input type="text" name="file">'),
            form("<br>", button("migrate"), ' To host: <input type="text" name="destination">', live),
        )
    )
