"""What the router is told: options, their values, and the checks before it starts."""
