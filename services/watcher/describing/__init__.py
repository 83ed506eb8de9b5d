"""How each kind of device is described: what is read for which field of its description and capability."""
