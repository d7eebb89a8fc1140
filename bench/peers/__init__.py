"""One driver for each peer, run by the Python of that peer's environment, written as its own examples are."""
