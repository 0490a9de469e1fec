"""PyTorch front end: ``torch.export`` to a Graph, weights to a flat dict. Needs torch."""

from jaxinfer_converters.torch.convert import from_torch as from_torch
from jaxinfer_converters.torch.sources import FRONT_END as FRONT_END
