"""A fleet in several processes on one store, faults at random, and a checker that replays what everybody saw."""
