"""The pure core: state, `evolve`, `decide`, conflict rules, intake, append resolution.

No await, clock, I/O, float, randomness, or dependence on hash order: the simulator runs exactly this code.
"""
