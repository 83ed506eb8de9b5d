"""Events as they were written once. Whoever reads the log gets today's for them."""

import msgspec

from leasehold.events.identities import DeviceId, Holder, RequestRef


class LeaseGrantedV1(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="lease_granted.v1"):
    """As it was written up to rules version 2; whoever reads the log gets a `LeaseGranted` for it."""

    request: RequestRef
    holder: Holder
    devices: tuple[DeviceId, ...]
    ttl_ms: int
    expires_at_ns: int
    forced: bool = False


OldEvent = LeaseGrantedV1
"""Versions that are read, and no longer written; `codec.decode_record` gives today's events for them."""
