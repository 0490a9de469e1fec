"""Benchmarks against peers: several sides in processes of their own, interleaved and compared."""

from jaxinfer.tune.bench._model import bench_model as bench_model
from jaxinfer.tune.bench._peers import PEERS as PEERS
from jaxinfer.tune.bench._run import bench as bench
from jaxinfer.tune.bench.result import BenchResult as BenchResult
from jaxinfer.tune.bench.result import Row as Row
from jaxinfer.tune.bench.side import Adapter as Adapter
from jaxinfer.tune.bench.side import Prepared as Prepared
from jaxinfer.tune.bench.side import Side as Side
