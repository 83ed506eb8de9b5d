"""The feed: tells the events of LEDGER, one by one, in EVENTS."""
