"""The ledger: one log that is only appended to, and the inbox OBSERVED beside it.

`port` says what a ledger is, `jetstream` is the real one, `memory` the same contract without a server, and `appends`
brings one append to a certain end on either.
"""
