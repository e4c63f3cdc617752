"""This process among the workers of a store: names, leases, and messages between them."""
