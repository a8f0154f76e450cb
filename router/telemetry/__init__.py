"""Metrics, logs and traces. Imports no other package of the router."""
