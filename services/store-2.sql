-- Schema 2: a log that was restored from an archive may be shorter than it was read before, and says so by its era.
ALTER TABLE head ADD COLUMN era INTEGER NOT NULL DEFAULT 0;
