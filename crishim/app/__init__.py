"""Builds every room of a server and connects them; the only place that knows them all."""
