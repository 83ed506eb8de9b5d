"""Figures: what leasing costs beside what the parts can do, in one run on one machine."""
