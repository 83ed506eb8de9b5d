"""Every encoding ever written, kept as files: what is in a log must stay readable, to the byte.

`python -m tests.golden.write` writes the files that are missing, and never one that is there.
"""
