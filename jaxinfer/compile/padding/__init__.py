"""Padding to buckets: read side by side, masked, moved or refused."""
