"""Benchmarks of the registry's calls on each store, compared with plain programs that do the same work per call."""
