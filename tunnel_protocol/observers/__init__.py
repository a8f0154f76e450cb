"""Logs of router and worker: threads write the lines, so that a slow or failed reader only loses lines, which are counted."""
