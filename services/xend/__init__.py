"""xend, the daemon of Xen up to 4.4: its notation, its transports, and a client for all that it can be asked.

`client.XendClient` is for programs, `leasehold xend` for people.
"""
