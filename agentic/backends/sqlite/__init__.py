"""Agents in a SQLite file."""
