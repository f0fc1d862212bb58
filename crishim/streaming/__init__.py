"""Exec, attach and port-forward for clients: protocols as bytes in and values out, and one server that has sockets."""
