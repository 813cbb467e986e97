"""Decisions: pure functions and frozen data. No I/O, no clock, no framework (a linter checks it)."""
