"""Programs that measure the cost of the library on this machine, with real servers."""
