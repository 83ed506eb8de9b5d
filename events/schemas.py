"""What types of messages are called outside: in the feed's CloudEvents, and as published schemas."""


def event_type(tag: str) -> str:
    """The `ce-type` of an event with this tag: `org.leasehold.lease_granted.v1`."""
    return f"org.leasehold.{tag}"


def schema_uri(name: str) -> str:
    """The `$id` of a published schema, and the `ce-dataschema` of an event, by its tag or name (`lease_granted.v1`).

    It is a name, not an address: the schemas are files of `docs/schemas/`.
    """
    return f"urn:leasehold:schema:{name}"
