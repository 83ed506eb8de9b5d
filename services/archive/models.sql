-- Schema 5 of the read models. All of it comes from the archive's records and can be built from them again, so there is
-- no way from one schema to the next: a file of another one is built anew. Positions, times in ns since 1970 (UTC).

-- How far the rows go: written in the transaction that writes them.
CREATE TABLE head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    ledger_id TEXT NOT NULL,
    era INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    chain TEXT NOT NULL,
    decided_at_ns INTEGER NOT NULL
) STRICT;

-- Every device that was ever seen. `lease` holds it now (0: none), `held` was the first that did.
CREATE TABLE device (
    device TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    first_position INTEGER NOT NULL,
    first_ns INTEGER NOT NULL,
    last_position INTEGER NOT NULL,
    described INTEGER NOT NULL,
    lease INTEGER NOT NULL,
    held INTEGER NOT NULL,
    missing INTEGER NOT NULL,
    flaps INTEGER NOT NULL,
    handed BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- What a device was like from a position on. Where it was not described anew, an earlier row has its description
-- (`described`), and what of it lists are filtered by. `flaps`: how often it was seen to go away for a moment, up to
-- here. `handed`: how far it was handed over or taken back, why it was in quarantine, how witnesses differed about it,
-- what operators said of it.
-- `types`: of its capabilities, each between commas.
CREATE TABLE version (
    device TEXT NOT NULL,
    from_position INTEGER NOT NULL,
    at_ns INTEGER NOT NULL,
    missing INTEGER NOT NULL,
    described INTEGER NOT NULL,
    flaps INTEGER NOT NULL,
    handed BLOB NOT NULL,
    bus TEXT NOT NULL,
    driver TEXT NOT NULL,
    parent TEXT NOT NULL,
    types TEXT NOT NULL,
    body BLOB
) STRICT;
CREATE UNIQUE INDEX version_of_device ON version (device, from_position);

-- Who had a device: under lease `from_position`, from there until `freed_position` (0: until now). Since no two of one
-- device overlap, the one that holds a position is the last that began before it: one step down this tree for a device,
-- however long its past is.
CREATE TABLE ownership (
    device TEXT NOT NULL,
    from_position INTEGER NOT NULL,
    from_ns INTEGER NOT NULL,
    ended_position INTEGER NOT NULL,
    ended_ns INTEGER NOT NULL,
    freed_position INTEGER NOT NULL,
    freed_ns INTEGER NOT NULL,
    displaced_position INTEGER NOT NULL,
    evidence TEXT NOT NULL,
    PRIMARY KEY (device, from_position)
) STRICT, WITHOUT ROWID;

CREATE TABLE lease (
    lease INTEGER PRIMARY KEY,
    granted_at_ns INTEGER NOT NULL,
    principal TEXT NOT NULL,
    tenant TEXT NOT NULL,
    holder TEXT NOT NULL,
    request_id TEXT NOT NULL,
    devices BLOB NOT NULL,
    forced INTEGER NOT NULL,
    ttl_ms INTEGER NOT NULL,
    expires_at_ns INTEGER NOT NULL,
    renewals INTEGER NOT NULL,
    renewed_position INTEGER NOT NULL,
    ended TEXT NOT NULL,
    ended_position INTEGER NOT NULL,
    ended_ns INTEGER NOT NULL,
    domain TEXT NOT NULL,
    bond BLOB NOT NULL,
    end_reason TEXT NOT NULL,
    mode TEXT NOT NULL,
    tolerates BLOB NOT NULL,
    queued INTEGER NOT NULL,
    reserved_for INTEGER NOT NULL,
    switched_position INTEGER NOT NULL
) STRICT;
CREATE INDEX lease_of_domain ON lease (domain, lease) WHERE domain != '';

-- Whose a lease was from a position on: from its grant, then from each transfer, until the next one (0: none came).
-- Principal, tenant and holder of the lease itself are those of its grant.
CREATE TABLE tenure (
    lease INTEGER NOT NULL,
    from_position INTEGER NOT NULL,
    from_ns INTEGER NOT NULL,
    until_position INTEGER NOT NULL,
    until_ns INTEGER NOT NULL,
    principal TEXT NOT NULL,
    tenant TEXT NOT NULL,
    holder TEXT NOT NULL,
    PRIMARY KEY (lease, from_position)
) STRICT, WITHOUT ROWID;
CREATE INDEX tenure_of_holder ON tenure (holder, lease);

-- Who shared a device, or only looked at it (`mode`): under lease `from_position`, until its end (0: until now). Such
-- leases overlap, and nobody waits for what they had to be free.
CREATE TABLE sharing (
    device TEXT NOT NULL,
    from_position INTEGER NOT NULL,
    from_ns INTEGER NOT NULL,
    mode TEXT NOT NULL,
    ended_position INTEGER NOT NULL,
    ended_ns INTEGER NOT NULL,
    PRIMARY KEY (device, from_position)
) STRICT, WITHOUT ROWID;
CREATE INDEX sharing_open ON sharing (from_position) WHERE ended_position = 0;

-- Requests that waited. `outcome`: `granted`, `withdrawn` or `in_vain`; empty: it waits still.
CREATE TABLE queued (
    queued INTEGER PRIMARY KEY,
    at_ns INTEGER NOT NULL,
    principal TEXT NOT NULL,
    tenant TEXT NOT NULL,
    holder TEXT NOT NULL,
    request_id TEXT NOT NULL,
    asked BLOB NOT NULL,
    rank_ns INTEGER NOT NULL,
    until_ns INTEGER NOT NULL,
    why BLOB NOT NULL,
    outcome TEXT NOT NULL,
    ended_position INTEGER NOT NULL,
    ended_ns INTEGER NOT NULL
) STRICT;
CREATE INDEX queued_open ON queued (queued) WHERE ended_position = 0;

-- What was kept for a request that waited, until `until_position` (0: until now).
CREATE TABLE keep (
    device TEXT NOT NULL,
    from_position INTEGER NOT NULL,
    queued INTEGER NOT NULL,
    until_position INTEGER NOT NULL,
    PRIMARY KEY (device, from_position)
) STRICT, WITHOUT ROWID;
CREATE INDEX keep_open ON keep (device) WHERE until_position = 0;

-- `sources`: an object, for each agent why it could not be relied on from here on. `dead`: who has said that it is off.
-- `marks`: what operators said of all of it.
CREATE TABLE host (
    host TEXT NOT NULL,
    from_position INTEGER NOT NULL,
    at_ns INTEGER NOT NULL,
    mode TEXT NOT NULL,
    sources BLOB NOT NULL,
    dead TEXT NOT NULL,
    marks BLOB NOT NULL,
    PRIMARY KEY (host, from_position)
) STRICT, WITHOUT ROWID;

CREATE TABLE request (
    request_id TEXT NOT NULL,
    principal TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (request_id, principal, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE refusal (
    position INTEGER PRIMARY KEY,
    at_ns INTEGER NOT NULL,
    principal TEXT NOT NULL,
    request_id TEXT NOT NULL,
    verb TEXT NOT NULL,
    holder TEXT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    about BLOB NOT NULL,
    -- How often it was given again.
    repeats INTEGER NOT NULL DEFAULT 0
) STRICT;

-- What hosts were told to do. `late_position`: where it was carried out, if its time had ended it before.
CREATE TABLE host_order (
    ordered INTEGER PRIMARY KEY,
    host TEXT NOT NULL,
    at_ns INTEGER NOT NULL,
    agent TEXT NOT NULL,
    principal TEXT NOT NULL,
    request_id TEXT NOT NULL,
    what BLOB NOT NULL,
    deadline_ns INTEGER NOT NULL,
    ended_position INTEGER NOT NULL,
    late_position INTEGER NOT NULL,
    device TEXT NOT NULL
) STRICT;
CREATE INDEX order_of_host ON host_order (host, ordered);
CREATE INDEX order_of_device ON host_order (device, ordered);

-- What devices were called at any time: key, node-device name, sysfs path.
CREATE TABLE name (
    text TEXT NOT NULL,
    device TEXT NOT NULL,
    PRIMARY KEY (text, device)
) STRICT, WITHOUT ROWID;

-- What a domain was like from a position on, and all that it used. `since_position`: of the event since which it was in
-- its incarnation. `gone`: it was not known from here on; `there`: it may have had devices.
CREATE TABLE domain (
    domain TEXT NOT NULL,
    from_position INTEGER NOT NULL,
    at_ns INTEGER NOT NULL,
    host TEXT NOT NULL,
    agent TEXT NOT NULL,
    gone INTEGER NOT NULL,
    there INTEGER NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    since_position INTEGER NOT NULL,
    since_ns INTEGER NOT NULL,
    body BLOB NOT NULL,
    uses BLOB NOT NULL,
    PRIMARY KEY (domain, from_position)
) STRICT, WITHOUT ROWID;

-- Every domain that was ever known.
CREATE TABLE domain_id (
    domain TEXT PRIMARY KEY,
    host TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What domains were called at any time: name, key, uuid.
CREATE TABLE domain_name (
    text TEXT NOT NULL,
    domain TEXT NOT NULL,
    PRIMARY KEY (text, domain)
) STRICT, WITHOUT ROWID;
