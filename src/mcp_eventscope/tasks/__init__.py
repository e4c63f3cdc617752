"""Tasks of revision 2026-07-28: long calls that survive their connection (SEP-2663)."""
