"""Side by side with others: `python -m benchmarks.peers`, after `make bench-peers` has made their environments."""
