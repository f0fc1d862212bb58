"""A stock Debian node under QEMU: cgroup v2 alone, systemd, AppArmor. `docs/node-image.md` tells how to use it."""
