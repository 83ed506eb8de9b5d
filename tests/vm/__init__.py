"""A real kernel with devices that come and go: a QEMU guest, and Leasehold watching it. See docs/testing.md."""
