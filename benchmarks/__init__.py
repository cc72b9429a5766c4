"""How fast the registry is, beside what it could be measured by: `python -m benchmarks`."""
