"""The Prometheus page: node-wide series, series per container, and the small HTTP server that shows them."""
