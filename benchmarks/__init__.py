"""Measurements, each correct before it is timed: `python -m benchmarks [kernels|tracing|app]`."""
