"""What the process tells its operators: metrics, logs, and the HTTP server on the metrics port. Imports no other room."""
