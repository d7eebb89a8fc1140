"""Benchmarks: kshot beside the libraries that people use today, and beside the machine's own limit."""
