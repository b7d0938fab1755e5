"""What streaming costs, ours beside others': `python -m benchmarks`, from the repository's root."""
