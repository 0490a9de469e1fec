"""Every architecture of the README's table: float32 parity at two batch sizes, one conversion."""

import pytest
import torch

import jaxinfer as ji
from tests.conftest import assert_parity, randomize
from tests.slow.architectures import ARCHITECTURES

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("default")  # the model packages warn about their own future
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parity_at_two_batch_sizes(name, request):
    if hasattr(ARCHITECTURES[name], "needs_timm"):
        request.getfixturevalue("timm")
    torch.manual_seed(0)
    module, inputs, dynamic = ARCHITECTURES[name]()
    randomize(module)
    args, kwargs = inputs(2)
    model = ji.from_torch(module, args, kwargs, dynamic)
    errors = []
    for batch in (2, 3):
        args, kwargs = inputs(batch)
        # float32 through up to 50 layers: 1e-4 of the largest output
        errors.append(assert_parity(model, module, args, kwargs, tol=1e-4))
    assert any(errors), "exact equality of two libraries would be suspicious"
