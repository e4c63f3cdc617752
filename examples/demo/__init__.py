"""The demonstration: a call whose stream is cut in the middle, and resumes. Run it with `make demo`."""
