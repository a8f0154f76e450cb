"""The built-in algorithms: each module is one, announced by its `ALGORITHM`. See docs/balancing.md, "Adding an algorithm"."""
