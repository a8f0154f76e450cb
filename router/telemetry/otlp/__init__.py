"""Export of traces by the OpenTelemetry SDK, the extra `[otel]`. Its modules are imported only if an endpoint is set."""
