"""The read path of a node: cache, fetch engine, device. Threads, no event loop."""
