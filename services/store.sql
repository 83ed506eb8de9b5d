-- Schema 1 of a fold's store. Steps are only ever added (schema 2 behind this one), never changed.

-- How far the log has been read, whatever has become of the snapshot: a log that is shorter or other than this was cut
-- or replaced.
CREATE TABLE head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    ledger_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    chain TEXT NOT NULL
) STRICT;

CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    fold_version INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    chain TEXT NOT NULL,
    sha256 TEXT NOT NULL
) STRICT;

-- Its bytes, in order: one value of all of them would be bounded by SQLite, and be copied whole again and again.
CREATE TABLE snapshot_piece (
    number INTEGER PRIMARY KEY,
    body BLOB NOT NULL
) STRICT;

-- Which positions tell of what; rows up to the snapshot at least, and up to the head in good order.
CREATE TABLE past (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (kind, name, position)
) STRICT, WITHOUT ROWID;
