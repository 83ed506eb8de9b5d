"""The allocator: takes requests, observations and ticks of time, and appends what is decided to the ledger."""
