"""Subscriptions of revision 2026-07-28 across workers."""
