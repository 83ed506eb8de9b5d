"""Asking by need, waiting, keeping and handing on, and what operators say of devices and hosts."""
