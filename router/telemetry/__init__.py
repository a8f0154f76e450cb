"""Metrics and logs. Imports no other package of the router."""
