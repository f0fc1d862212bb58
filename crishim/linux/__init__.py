"""Thin, typed system calls: one module per man-page family, `OSError` on failure, no policy. The only ctypes."""
