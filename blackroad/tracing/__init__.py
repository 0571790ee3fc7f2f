"""The lives of tasks as OpenTelemetry traces; made only where `otel_url` switches it on."""
