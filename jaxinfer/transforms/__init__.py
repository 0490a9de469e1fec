"""Transforms of models: cast, fold, prune, quantize; one technique a file."""
