"""Tests of jaxinfer.numerics."""
