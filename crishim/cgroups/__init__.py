"""Cgroups: one plan for v1, hybrid and v2, and its effects. Server, zygote and monitor all use it.

`plan` is pure and runs in the server; `effects`, `processes`, `stats` act on the kernel and import nothing heavy, since
every monitor carries them for the life of its pod. The driver is cgroupfs: directories are made and removed here.
"""
