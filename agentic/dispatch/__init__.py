"""How the calls of many callers reach a store."""
