"""A small CNN trained in torch on real images, converted: identical predictions, and saved."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import jaxinfer as ji

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    x, y = torch.from_numpy(images[:1400]), torch.from_numpy(labels[:1400])
    for _ in range(12):
        for start in range(0, len(x), 100):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x[start : start + 100]), y[start : start + 100])
            loss.backward()
            optimizer.step()
    return net.eval(), images[1400:], labels[1400:]


def test_predictions_are_identical(trained, tmp_path):
    net, images, labels = trained
    model = ji.from_torch(net, (torch.from_numpy(images[:2]),), dynamic_shapes=({0: "batch"},))
    with torch.no_grad():
        want = net(torch.from_numpy(images)).argmax(1).numpy()
    assert (want == labels).mean() > 0.9  # it has learned something
    np.testing.assert_array_equal(np.asarray(model(images)).argmax(1), want)
    model.save(tmp_path / "digits")
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, jaxinfer as ji\n"
        "model = ji.load(sys.argv[1]); images = np.load(sys.argv[2])\n"
        "np.save(sys.argv[3], np.asarray(model(images)).argmax(1))\n"
    )
    files = [str(tmp_path / name) for name in ("digits", "images.npy", "out.npy")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)
    np.testing.assert_array_equal(np.load(files[2]), want)
