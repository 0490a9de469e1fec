"""Sharding: meshes, rules, plans, automatic partitioning."""

from jaxinfer.sharding._score import Score as Score
from jaxinfer.sharding.mesh import check_mesh as check_mesh
from jaxinfer.sharding.mesh import make_mesh as make_mesh
from jaxinfer.sharding.partition import partition as partition
from jaxinfer.sharding.plan import Row as Row
from jaxinfer.sharding.plan import ShardingPlan as ShardingPlan
