"""Configuration: options, their values, and the checks before the start."""
