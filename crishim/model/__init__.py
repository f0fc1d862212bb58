"""Frozen values that every room speaks: configurations, statuses, events. No effects, no kernel, no protobuf."""
