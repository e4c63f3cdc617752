"""One session at a time: its view of the store, and the manager that hands it out."""
