"""Layouts of real networks: at most one permute at each end, in the graph and as compiled."""

import re

import jax
import numpy as np
import pytest
import torch

import jaxinfer as ji
from tests.conftest import assert_parity, randomize

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

# name: permutes that are left. All networks here take NCHW and end in a vector.
NETWORKS = {
    "resnet50": 1,
    "convnext_tiny": 1,
    "efficientnet_b0": 1,
    "mobilenetv3_large_100": 1,
    "regnetx_002": 1,
    "densenet121": 1,
    "vit_tiny_patch16_224": 1,
    "swin_tiny_patch4_window7_224": 1,
}


def moved(text, smallest):
    """Transposes and copies in a compiled program of ``smallest`` values or more."""
    found = []
    for shape in re.findall(r"= f32\[([\d,]+)\]\S* (?:transpose|copy)\(", text):
        size = int(np.prod([int(n) for n in shape.split(",")]))
        if size >= smallest:
            found.append(shape)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_permutes_that_are_left(name, timm):
    torch.manual_seed(0)
    module = randomize(timm.create_model(name).eval())
    x = torch.randn(2, 3, 224, 224)
    model = ji.from_torch(module, (x,), dynamic_shapes=({0: "batch"},))
    assert len(model.program.layout_permutes) == NETWORKS[name]
    assert_parity(model, module, (x,))


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny", "efficientnet_b0"])
def test_compiled_programs_transpose_only_their_input(name, timm):
    module = timm.create_model(name).eval()
    x = torch.randn(1, 3, 224, 224)
    model = ji.from_torch(module, (x,))
    compiled = jax.jit(model.apply).lower(model.params, jax.numpy.asarray(x.numpy())).compile()
    # an activation of these networks has at least 7 * 7 * 64 values, a batch of 1
    large = moved(compiled.as_text(), 7 * 7 * 64)
    assert [shape for shape in large if shape != "1,224,224,3"] == []


def test_the_search_for_transposes_finds_one():
    compiled = jax.jit(lambda x: x.transpose(0, 2, 3, 1) * 2)
    text = compiled.lower(jax.ShapeDtypeStruct((1, 64, 7, 7), "float32")).compile().as_text()
    assert moved(text, 7 * 7 * 64)
