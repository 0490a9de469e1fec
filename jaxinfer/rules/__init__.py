"""How primitives are computed on array types, one file a type; importing this registers them."""
