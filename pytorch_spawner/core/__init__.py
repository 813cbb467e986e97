"""Decisions: pure functions, frozen data; no I/O, clock or framework (a linter checks it)."""
