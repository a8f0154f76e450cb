"""The port of operators: metrics page, explanations of routing decisions."""
