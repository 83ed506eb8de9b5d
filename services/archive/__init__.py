"""The archive: the ledger's records again, in files of its own, and what can be asked of the past.

`segments` says how the files look, `ledger` reads them, `writer` writes them, `backup` copies them.
"""
