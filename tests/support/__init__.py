"""What several suites of tests need: real servers, and a wire that can be cut."""
