"""Container logs in the CRI format, written by the pod's monitor: no asyncio, no logging, no heavy imports."""
