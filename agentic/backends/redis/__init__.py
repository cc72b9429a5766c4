"""Agents in Redis or Valkey."""
