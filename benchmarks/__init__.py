"""What the registry's calls cost on each store, beside plain programs that do the same work one call at a time."""
