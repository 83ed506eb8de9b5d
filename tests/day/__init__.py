"""A scripted day: every part is killed under load, and then the past is asked and held against brute force."""
