"""The communication of compiled programs: of known programs on eight devices, and of texts."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxinfer.core.hlo import Collective, Operation, collectives, communication

P = PartitionSpec
ROWS = 16  # of f32[16, 4], split over data=2: 8 x 4 x 4 = 128 bytes on a device


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def text_of(mesh, body):
    rows = P("data")
    fn = jax.shard_map(body, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return jax.jit(fn).lower(jax.ShapeDtypeStruct((ROWS, 4), jnp.float32)).compile().as_text()


def repeated(body, length):
    def fn(x):
        return jax.lax.scan(lambda c, _: (body(c) * 0.5, None), x, None, length=length)[0]

    return fn


@pytest.mark.parametrize(
    ("body", "want", "wire"),
    [
        (lambda x: jax.lax.psum(x, "model"), ("all-reduce", 128, 1), 2 * 3 / 4 * 128),
        (lambda x: jax.lax.psum(x, "data"), ("all-reduce", 128, 1), 128),
        (lambda x: jax.lax.psum(x, ("data", "model")), ("all-reduce", 128, 1), 2 * 7 / 8 * 128),
        (
            lambda x: jax.lax.all_gather(x, "model", tiled=True),
            ("all-gather", 512, 1),
            3 / 4 * 512,
        ),
        (
            lambda x: jax.lax.psum_scatter(x, "model", tiled=True),
            ("reduce-scatter", 128, 1),
            3 / 4 * 128,
        ),
        (
            lambda x: jax.lax.all_to_all(x, "model", 0, 1, tiled=True),
            ("all-to-all", 128, 1),
            3 / 4 * 128,
        ),
        (
            lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]),
            ("collective-permute", 128, 1),
            128,
        ),
        (repeated(lambda x: jax.lax.psum(x, "model"), 5), ("all-reduce", 640, 5), 960),
        (
            repeated(repeated(lambda x: jax.lax.psum(x, "model"), 3), 7),
            ("all-reduce", 21 * 128, 21),
            21 * 192,
        ),
    ],
    ids=[
        "psum",
        "psum 2",
        "psum 8",
        "gather",
        "scatter",
        "all to all",
        "permute",
        "scan",
        "nested",
    ],
)
def test_known_programs(mesh, body, want, wire):
    text = text_of(mesh, body)
    assert collectives(text) == [Collective(*want)]
    assert communication(text).wire == pytest.approx(wire)
    assert communication(text).unknown_loops == 0


def test_a_loop_of_unknown_length_counts_once_and_is_said(mesh):
    def fn(x):
        return jax.lax.while_loop(
            lambda c: c.sum() < 100, lambda c: jax.lax.psum(c, "model") + 1, x
        )

    found = communication(text_of(mesh, fn))
    assert [op.times for op in found.operations if op.kind == "all-reduce"] == [1]
    assert found.unknown_loops == 1


def test_of_a_conditional_the_dearer_branch_counts(mesh):
    def fn(x):
        dear = lambda c: jax.lax.psum(c, "model")
        cheap = lambda c: c * 2 + jax.lax.psum(c[0, 0], "data")
        return jax.lax.cond(jax.lax.axis_index("data") > 0, dear, cheap, x)

    assert collectives(text_of(mesh, fn)) == [Collective("all-reduce", 128, 1)]


def test_one_device_communicates_nothing():
    compiled = jax.jit(lambda x: x @ x).lower(jnp.ones((3, 3))).compile()
    assert collectives(compiled.as_text()) == []


GPU = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[] parameter(0)
  %b = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%a, %b)
}

%wrapped (param: bf16[64,16]) -> bf16[8,16] {
  %param = bf16[64,16]{1,0} parameter(0)
  ROOT %rs = bf16[8,16]{1,0} reduce-scatter(%param), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}

%cond (state: (s32[], bf16[8,16])) -> pred[] {
  %state = (s32[], bf16[8,16]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%body (state: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %state = (s32[], /*index=1*/bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,16]{1,0} get-tuple-element((s32[], bf16[8,16]{1,0}) %state), index=1
  %start = bf16[8,16]{1,0} all-reduce-start(bf16[8,16]{1,0} %x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %done = bf16[8,16]{1,0} all-reduce-done(bf16[8,16]{1,0} %start)
  ROOT %out = (s32[], bf16[8,16]{1,0}) tuple(%i, %done)
}

ENTRY %main (p0: bf16[8,16], p1: s4[32]) -> bf16[64,16] {
  %p0 = bf16[8,16]{1,0} parameter(0)
  %p1 = s4[32]{0} parameter(1)
  %loop = (s32[], bf16[8,16]{1,0}) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %ag-start = (bf16[8,16]{1,0}, bf16[64,16]{1,0}) all-gather-start(bf16[8,16]{1,0} %p0), replica_groups=[1,8]<=[8], dimensions={0}, metadata={op_name="jit(f)/gather (a, b)"}
  %ag-done = bf16[64,16]{1,0} all-gather-done((bf16[8,16]{1,0}, bf16[64,16]{1,0}) %ag-start)
  %two-start = ((s4[32], s4[32]), (s4[64], s4[64])) all-gather-start(%p1, %p1), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
  %two-done = (s4[64], s4[64]) all-gather-done(%two-start)
  %cp-start = (bf16[8,16]{1,0}, bf16[8,16]{1,0}, u32[], u32[]) collective-permute-start(%p0), source_target_pairs={{0,1},{1,0}}
  %cp-done = bf16[8,16]{1,0} collective-permute-done(%cp-start)
  %async = ((bf16[64,16]{1,0}), bf16[8,16]{1,0}, u32[]) async-start(%ag-done), calls=%wrapped
  %async-done = bf16[8,16]{1,0} async-done(%async), calls=%wrapped
  ROOT %all = bf16[64,16]{1,0} all-reduce(%ag-done), replica_groups={}, to_apply=%add
}
"""  # noqa: E501


def test_a_text_of_the_gpu_compiler():
    found = communication(GPU)
    assert found.operations == (
        Operation("all-reduce", 256, 4, 12, "start"),
        Operation("all-gather", 2048, 8, 1, "jit(f)/gather (a, b)"),
        Operation("all-gather", 64, 2, 1, "two-start"),
        Operation("collective-permute", 256, 2, 1, "cp-start"),
        Operation("reduce-scatter", 2048, 8, 1, "rs"),
        Operation("all-reduce", 2048, 8, 1, "all"),
    )
    assert collectives(GPU) == [
        Collective("all-reduce", 12 * 256 + 2048, 13),
        Collective("all-gather", 2048 + 64, 2),
        Collective("reduce-scatter", 2048, 1),
        Collective("collective-permute", 256, 1),
    ]


@pytest.mark.parametrize(
    ("groups", "want"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['data'=2,'model'=4] {'model'}", 4),
        ("mesh['data'=2,'model'=4] {'data','model'}", 8),
        ("mesh['data'=2,'model'=4], device_ids=([2,4]T(1,0)) {'model':(1)2}", 2),
        ("{}", 8),
    ],
)
def test_groups_as_versions_write_them(groups, want):
    text = f"""HloModule m, num_partitions=8

ENTRY %main (p: f32[4]) -> f32[4] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %r = f32[4]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%add
}}
"""
    assert communication(text).operations == (Operation("all-reduce", 16, want, 1, "r"),)


def test_a_text_without_a_program():
    with pytest.raises(ValueError, match="none with an ENTRY"):
        collectives("no HLO")
