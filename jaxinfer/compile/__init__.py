"""Executables: buckets, ahead-of-time compilation, back-ends, export."""
