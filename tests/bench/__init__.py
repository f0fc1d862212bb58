"""Measurements beside the peers, in one run on one machine: only the ratios between columns travel to another one."""
