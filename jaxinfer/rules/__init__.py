"""How primitives are computed on array types, one file a type; importing this registers them."""

from jaxinfer.rules import _layout as _layout
from jaxinfer.rules import masked as masked
from jaxinfer.rules import qtensor as qtensor
