"""Layouts of converted modules: the interface, the stored kernels, checkpoints, loops."""

import jax
import numpy as np
import pytest
import torch
from torch import nn

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from tests.conftest import assert_parity, randomize


class Net(nn.Module):
    """A little of everything: strides, groups, norms, a residual, upsampling, an image out."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.group = nn.GroupNorm(4, 16)
        self.point = nn.Conv2d(16, 8, 1, bias=False)
        self.act = nn.PReLU(8)
        self.up = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.stem(x))))
        y = self.act(self.point(self.group(self.depthwise(x))))
        x = nn.functional.interpolate(x + y, scale_factor=2.0, mode="bilinear")
        return self.up(x), x.mean((2, 3))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return randomize(Net().eval())


X = torch.randn(2, 3, 20, 28, generator=torch.Generator().manual_seed(1))


def test_the_interface_stays_as_torch_has_it(net):
    model = ji.from_torch(net, (X,), dynamic_shapes=({0: "batch"},))
    assert model.inputs[0].shape == ("batch", 3, 20, 28)
    assert_parity(model, net, (X,), tol=1e-5)
    assert_parity(model, net, (X[:1],), tol=1e-5)
    assert model.program.layout_permutes == (
        "float32[batch, 20, 28, 3] in stem",
        "float32[batch, 4, 20, 28] in the module itself",
    )


def test_keep_is_torchs_own_order(net):
    model = ji.from_torch(net, (X,), layout="keep")
    assert_parity(model, net, (X,), tol=1e-5)
    assert not model.program.layout_permutes
    assert model.params["stem.weight"].shape == net.stem.weight.shape


def test_nhwc_at_the_interface(net):
    model = ji.from_torch(net, (X,), dynamic_shapes=({0: "batch"},), layout="NHWC")
    assert model.inputs[0].shape == ("batch", 20, 28, 3)
    assert not model.program.layout_permutes
    image, vector = model(np.moveaxis(X.numpy(), 1, -1))
    with torch.no_grad():
        want_image, want_vector = net(X)
    np.testing.assert_allclose(np.moveaxis(image, -1, 1), want_image, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(vector, want_vector, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="20, 28, 3"):
        model(X.numpy())


def test_kernels_are_stored_as_they_are_used(net):
    model = ji.from_torch(net, (X,))
    shapes = {name: leaf.shape for name, leaf in model.params.items() if name.endswith("weight")}
    assert shapes["stem.weight"] == (3, 3, 3, 8)
    assert shapes["depthwise.weight"] == (3, 3, 1, 16)
    assert shapes["up.weight"] == (4, 4, 8, 4)  # [..., in, out] of a transposed one too
    np.testing.assert_array_equal(
        model.params["stem.weight"], net.stem.weight.detach().permute(2, 3, 1, 0)
    )


def test_saved_and_read_again(net, tmp_path):
    model = ji.from_torch(net, (X,))
    model.save(tmp_path / "net")
    again = ji.load(tmp_path / "net")
    for one, other in zip(model(X.numpy()), again(X.numpy()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_from_a_checkpoint_are_transposed_too(net, tmp_path):
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "w.safetensors")
    with torch.device("meta"):
        empty = Net().eval()
    model = ji.from_torch(empty, (X,), weights=tmp_path / "w.safetensors")
    assert model.params["stem.weight"].shape == (3, 3, 3, 8)
    assert_parity(model, net, (X,), tol=1e-5)


def test_tied_kernels_are_one_leaf_in_torchs_order():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = nn.Conv2d(4, 4, 3, padding=1)
            self.decode = nn.ConvTranspose2d(4, 4, 3, padding=1)
            self.decode.weight = self.encode.weight

        def forward(self, x):
            return self.decode(self.encode(x)).mean((2, 3))

    module, x = randomize(Tied().eval()), torch.randn(2, 4, 5, 7)
    model = ji.from_torch(module, (x,))
    assert model.params["encode.weight"].shape == (4, 4, 3, 3)
    assert "decode.weight" not in model.params
    assert_parity(model, module, (x,), tol=1e-5)


def test_gradients_of_kernels_are_torchs_in_the_stored_order(net):
    model = ji.from_torch(net, (X,))
    loss = lambda params: sum((y**2).sum() for y in model.apply(params, X.numpy()))
    got = jax.jit(jax.grad(loss))(model.params)
    sum((y**2).sum() for y in net(X)).backward()
    for name, order in (("stem", (2, 3, 1, 0)), ("depthwise", (2, 3, 1, 0)), ("up", (2, 3, 0, 1))):
        want = getattr(net, name).weight.grad.permute(order).numpy()
        np.testing.assert_allclose(
            got[f"{name}.weight"], want, rtol=0, atol=1e-4 * np.abs(want).max()
        )
    net.zero_grad()


def test_an_unknown_layout(net):
    with pytest.raises(ValueError, match="required one of NCHW, NHWC, keep, got 'CHWN'"):
        ji.from_torch(net, (X,), layout="CHWN")


def test_a_rule_of_the_users_own_gets_torchs_order(net, monkeypatch):
    """A replaced rule knows no channels_last: its operands come as torch has them."""
    from jaxinfer.core.ops import OPS

    shapes = []

    def relu(x):
        shapes.append(x.shape)
        return jax.nn.relu(x)

    monkeypatch.setitem(OPS._rules, "aten.relu.default", relu)
    model = ji.from_torch(net, (X,))
    assert_parity(model, net, (X,), tol=1e-5)
    assert set(shapes) == {(2, 8, 10, 14)}
