-- Schema 1 of a segment: some of the ledger's records, as they stand there. A segment is only appended to.

CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    ledger_id TEXT NOT NULL,
    cluster TEXT NOT NULL,
    -- The sequence of the segment's first record, the chain hash that this one carries of the record before it (32
    -- bytes), and the name of the segment which holds that; zeros and nothing for the first segment of all.
    first INTEGER NOT NULL CHECK (first >= 1),
    follows BLOB NOT NULL CHECK (length(follows) = 32),
    previous TEXT NOT NULL
) STRICT;

CREATE TABLE records (
    sequence INTEGER PRIMARY KEY,
    decided_at_ns INTEGER NOT NULL,
    -- SHA-256 of the body: what the next record carries as `prev`.
    chain BLOB NOT NULL CHECK (length(chain) = 32),
    body BLOB NOT NULL
) STRICT;

CREATE INDEX records_by_time ON records (decided_at_ns);

CREATE TRIGGER meta_is_one BEFORE INSERT ON meta WHEN (SELECT count(*) FROM meta) > 0
BEGIN SELECT RAISE(ABORT, 'a segment says once what it is'); END;
CREATE TRIGGER meta_stays BEFORE UPDATE ON meta BEGIN SELECT RAISE(ABORT, 'a segment is only appended to'); END;
CREATE TRIGGER meta_is_kept BEFORE DELETE ON meta BEGIN SELECT RAISE(ABORT, 'a segment is only appended to'); END;

CREATE TRIGGER records_stay BEFORE UPDATE ON records BEGIN SELECT RAISE(ABORT, 'a segment is only appended to'); END;
CREATE TRIGGER records_are_kept BEFORE DELETE ON records
BEGIN SELECT RAISE(ABORT, 'a segment is only appended to'); END;
-- Also of an INSERT OR REPLACE, which would delete without asking the trigger above.
CREATE TRIGGER records_in_order BEFORE INSERT ON records
WHEN NEW.sequence IS NOT coalesce((SELECT max(sequence) + 1 FROM records), (SELECT first FROM meta))
BEGIN SELECT RAISE(ABORT, 'a segment is only appended to, one record behind the other'); END;
