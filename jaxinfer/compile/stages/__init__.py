"""Stages of a pipeline: cut, placed, compiled, run, drawn."""
