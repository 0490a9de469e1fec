"""What is done to a captured graph before its weights are read.

Keys and values are not repeated for grouped queries; layouts are chosen; repeated layers are
scanned, if asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from jaxinfer_converters import scan_layers as repeated
from jaxinfer_converters.grouped import keep_groups
from jaxinfer_converters.layout import channels_last, retaken
from jaxinfer_converters.torch.capture import Captured

LAYOUTS = ("NCHW", "NHWC", "keep")


def arrange(
    captured: Captured,
    *,
    layout: str = "NCHW",
    scan_layers: bool = False,
    tied: Collection[str] = (),
) -> Captured:
    """Choose layouts, and scan repeated layers if asked.

    Args:
      layout: of images at the interface: ``"NCHW"`` (torch's) or ``"NHWC"``. Inside,
        convolutions run channels-last either way; ``"keep"`` leaves the graph as torch had it.
      scan_layers: run repeated blocks in one ``lax.scan`` over stacked parameters.
      tied: tensors that have several names.

    Raises:
      ValueError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: required one of {', '.join(LAYOUTS)}, got {layout!r}")
    captured = dataclasses.replace(captured, graph=keep_groups(captured.graph))
    if layout != "keep":
        captured = _channels_last(captured, tied, nhwc=layout == "NHWC")
    if scan_layers:
        graph, notes = repeated.scan_layers(captured.graph, tied=tied)
        notes = {**captured.notes, "scan_layers": notes}
        captured = dataclasses.replace(captured, graph=graph, notes=notes)
    return captured


def _channels_last(captured: Captured, tied: Collection[str], *, nhwc: bool) -> Captured:
    """Rewrite the graph, and the shapes of the inputs that are now channels-last."""
    graph = channels_last(captured.graph, tied=tied, nhwc=nhwc)
    signature = retaken(captured.signature, graph)
    return dataclasses.replace(captured, graph=graph, signature=signature)
