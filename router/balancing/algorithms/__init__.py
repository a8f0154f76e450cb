"""The built-in algorithms: each module registers one by its `ALGORITHM`. See docs/balancing.md, "Adding an algorithm"."""
