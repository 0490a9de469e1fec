"""Running generative models: prefill, decode, and the loop around them."""

from jaxinfer.engine.greedy import GreedyDecoder as GreedyDecoder
