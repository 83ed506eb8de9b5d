"""The query service: answers questions from the fold, and tells the past from the log. It changes nothing.

`decoding` reads questions strictly, `orders` keeps what lists are paged through, `answering` answers from the state,
`past` from the index and the log, and `service` is what listens on the bus.
"""
