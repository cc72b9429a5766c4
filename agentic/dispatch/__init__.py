"""Send the calls of many callers to a store: in batches, in order, within their timeouts."""
