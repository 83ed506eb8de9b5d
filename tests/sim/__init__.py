"""The simulator: the real core, with everything around it made to fail, one seed at a time."""
