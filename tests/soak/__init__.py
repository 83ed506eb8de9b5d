"""Runs that take minutes, each with a command of its own."""
