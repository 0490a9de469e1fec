"""Front ends of jaxinfer, found through the entry-point group ``jaxinfer.converters``."""
