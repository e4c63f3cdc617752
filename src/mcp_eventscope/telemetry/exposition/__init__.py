"""`/metrics`: endpoints, the registry as text, and the files of several processes."""
