"""What is said on the bus, described for others: JSON Schemas of the messages, and an AsyncAPI document."""
