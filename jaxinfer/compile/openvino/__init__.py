"""The OpenVINO back-end: a jaxpr as a graph of its operations."""
