"""The executor: zygote, monitors and the children they start (design: `docs/architecture.md`, the processes).

Its door for the server and for library callers is `client.py`, with `wire.py` below it. Everything else here runs in
the zygote or in processes forked from it: one thread, no asyncio, no logging, no dataclasses, no import after the
freeze.
"""
