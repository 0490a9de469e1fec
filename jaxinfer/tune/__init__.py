"""Finding the fastest arrangement of a model that is accurate enough."""
