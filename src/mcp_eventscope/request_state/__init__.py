"""Request state of revision 2026-07-28 that any worker can open, once."""
