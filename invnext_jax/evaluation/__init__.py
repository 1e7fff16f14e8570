"""What a frozen encoder has learned: features, linear probes with honest brackets, a report."""
