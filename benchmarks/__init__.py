"""Benchmarks: programs that measure both sides in one run and write JSON."""
