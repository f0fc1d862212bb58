"""Exec, attach and port-forward: a URL now, and when its client comes, a process, a view of one, or a socket in a pod.

The bytes are moved by the streaming server; here are the descriptors and the rules.
"""
