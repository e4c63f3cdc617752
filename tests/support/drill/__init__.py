"""A fire drill: real workers, clients and a Prometheus, faults in turn, and an account of all that was done."""
