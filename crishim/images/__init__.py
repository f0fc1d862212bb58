"""Images: references, registries, the store, layers applied by a confined child, rootfs directories."""
