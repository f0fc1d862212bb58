"""CNI as clusters have it: the node's configuration, plugins as programs, results on disk (CNI specification 1.1)."""
