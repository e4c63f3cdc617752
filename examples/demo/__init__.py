"""The demonstration: a stream that is cut, and a worker that is killed, in the middle of a call. Run `make demo`."""
