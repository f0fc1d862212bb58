"""Pod networks: the embedded bridge, or the CNI plugins of the node. `door.py` is what the use cases see of either."""
