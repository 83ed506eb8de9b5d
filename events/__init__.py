"""The vocabulary: identities, inputs, events, the record that holds them, and how all of it is written down.

Nothing here decides, waits, reads a clock or touches the outside; everything else may import it.
"""
