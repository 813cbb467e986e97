"""One file for each outside thing. Adapters translate, and never decide."""
