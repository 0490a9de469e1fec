"""Channels-last inside: a graph's layouts, chosen by a minimum cut.

XLA convolves NHWC by HWIO 1.2 to 2.3 times faster than NCHW on CPUs, and NHWC is the layout of
tensor cores. ``channels_last`` rewrites a graph so, without torch; ``permutes`` lists what the
pass could not cancel.
"""

from jaxinfer_converters.layout.rewrite import channels_last as channels_last
from jaxinfer_converters.layout.rewrite import permutes as permutes
from jaxinfer_converters.layout.rewrite import retaken as retaken
