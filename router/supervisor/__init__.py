"""Several processes of one router: start, watch, restart and drain them, and serve the sum of their metrics."""
