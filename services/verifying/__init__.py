"""What is looked at when somebody wants to know whether the log is what it was: `leasehold verify` and `replay`."""
