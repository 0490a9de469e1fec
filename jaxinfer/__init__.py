"""jaxinfer: from a PyTorch model to a fast pure JAX function, nothing done behind your back.

>>> import jax.numpy as jnp, jaxinfer as ji
>>> params, x = {"w": jnp.eye(2)}, jnp.ones((3, 2))
>>> model = ji.from_function(lambda p, x: jnp.tanh(x @ p["w"]), params, (x,))
>>> model.apply(model.params, jnp.zeros((3, 2))).shape
(3, 2)

Importing this imports no torch and touches no device.
"""

import jaxinfer.rules  # noqa: F401  (registers the rules of array types)
from jaxinfer._version import __version__ as __version__
from jaxinfer.api import apply_recipe as apply_recipe
from jaxinfer.api import export as export
from jaxinfer.api import from_flax as from_flax
from jaxinfer.api import from_function as from_function
from jaxinfer.api import from_generative as from_generative
from jaxinfer.api import from_onnx as from_onnx
from jaxinfer.api import from_torch as from_torch
from jaxinfer.api import load as load
from jaxinfer.api import load_calibration as load_calibration
from jaxinfer.api import load_executable as load_executable
from jaxinfer.api import load_export as load_export
from jaxinfer.api import load_tuned as load_tuned
from jaxinfer.api import optimize as optimize
from jaxinfer.api import pipeline as pipeline
from jaxinfer.api import save as save
from jaxinfer.api import save_calibration as save_calibration
from jaxinfer.api import to_nnx as to_nnx
from jaxinfer.compile.bucket import PaddingError as PaddingError
from jaxinfer.compile.bucket import bucket as bucket
from jaxinfer.compile.bucket import choose_buckets as choose_buckets
from jaxinfer.compile.build import compile as compile
from jaxinfer.compile.guard import no_compile as no_compile
from jaxinfer.core.errors import JaxinferError as JaxinferError
from jaxinfer.core.hoist import hoist_constants as hoist_constants
from jaxinfer.core.model import Model as Model
from jaxinfer.core.ops import register as register
from jaxinfer.core.selectors import rule as rule
from jaxinfer.core.state_dict import to_state_dict as to_state_dict
from jaxinfer.core.structure import Output as Output
from jaxinfer.core.transform import Transform as Transform
from jaxinfer.core.transform import chain as chain
from jaxinfer.core.transform import identity as identity
from jaxinfer.sharding.distributed import initialize as initialize
from jaxinfer.sharding.mesh import make_mesh as make_mesh
from jaxinfer.sharding.partition import partition as partition
from jaxinfer.sharding.plan import ShardingPlan as ShardingPlan
from jaxinfer.transforms._calibrate import calibrate as calibrate
from jaxinfer.transforms.arrange import arrange as arrange
from jaxinfer.transforms.cast import Policy as Policy
from jaxinfer.transforms.cast import cast as cast
from jaxinfer.transforms.fold import fold as fold
from jaxinfer.transforms.prune import finalize as finalize
from jaxinfer.transforms.prune import masks as masks
from jaxinfer.transforms.prune import prune as prune
from jaxinfer.transforms.prune import with_sparsity as with_sparsity
from jaxinfer.transforms.quantize import quantize as quantize
from jaxinfer.transforms.recover import recover as recover
from jaxinfer.tune.adaptive import Adaptive as Adaptive
from jaxinfer.tune.budget import Budget as Budget
from jaxinfer.tune.space import Space as Space
