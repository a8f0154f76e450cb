"""The operators' (metrics) port: metrics and explanations of routing decisions."""
