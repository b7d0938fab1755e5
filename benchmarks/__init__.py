"""Benchmarks of flask_stream and of other ways to stream: `python -m benchmarks`."""
