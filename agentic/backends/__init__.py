"""The stores, blind to one another; each is the only importer of its driver."""
