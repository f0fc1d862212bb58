"""Nothing leaks: what is on the node is compared with what the server knows, and what is nobody's is freed."""
