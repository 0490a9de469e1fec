"""Meshes, sharding rules, automatic partitioning, several processes."""
