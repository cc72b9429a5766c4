"""A fleet in several processes on one store, random faults, and a checker of the recorded history."""
