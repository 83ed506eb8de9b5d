"""The poller: tells which domains a host has, and which devices they claim or have."""
