"""Data of a search: what is read, what is refused, and how samples are put in other calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.core.model import Model
from jaxinfer.core.program import StableHLOProgram
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF
from jaxinfer.tune.data import read, read_npz, run_all, split

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def linear(width=3, rows=2):
    return ji.from_function(lambda p, x: x @ p, jnp.eye(width), (jnp.ones((rows, width)),))


class Converted:
    """A converted model's program: named inputs, symbolic sizes, checked at a call."""

    kind = "graph"
    fixed = True
    random = False

    def __init__(self, names, leaves, fn, symbols=None):
        self.arrays = self.blobs = {}
        self.signature = Signature(names, len(names), (LEAF,) * len(names), leaves, symbols or {})
        self.fn = fn

    def run(self, params, leaves, rng_key=None):
        return [self.fn(params, *leaves)]

    def finish(self, flat):
        return flat[0]


def converted(dims, symbols=None, fn=lambda p, x, s: x * p + s):
    leaves = (LeafSpec("x", dims, "float32"), LeafSpec("s", value=2.0))
    return Model(Converted(("x", "s"), leaves, fn, symbols), jnp.float32(3))


def test_a_tuple_a_dict_and_an_array_are_the_same_batch():
    model = linear()
    x = normal(4, 3)
    for batch in (x, (x,), [x], {"x": x}, jnp.asarray(x)):
        data = read(model, [batch])
        assert data.sampled
        assert data.size == data.batch == 4
        assert type(data.calls[0].arrays[0]) is np.ndarray
        np.testing.assert_array_equal(data.calls[0].arrays[0], x)
        assert data.calls[0].extras == {}


def test_torch_tensors_are_batches():
    torch = pytest.importorskip("torch")
    data = read(linear(), [(torch.ones(2, 3), torch.tensor([4, 5]))])
    assert data.calls[0].extras["0"].tolist() == [4, 5]
    assert data.by_sample == ("0",)


def test_arrays_are_not_copied():
    x = normal(4, 3)
    assert np.shares_memory(read(linear(), [x]).calls[0].arrays[0], x)
    assert np.shares_memory(read(linear(), [x]).rebatch(2).calls[1].arrays[0], x)


def test_what_is_beyond_the_inputs_is_extra():
    x, y = normal(4, 3), np.arange(4)
    data = read(linear(), [(x, y, "note"), (x, y, "note")])
    assert data.by_sample == ("0",)
    assert data.calls[0].extras["1"] == "note"
    data = read(linear(), [{"x": x, "label": y.tolist()}])
    assert data.calls[0].extras["label"].tolist() == [0, 1, 2, 3]
    # several inputs by name, and labels behind them
    model = ji.from_function(lambda p, a, b: a + b, {}, (x, x))
    data = read(model, [({"x0": x, "x1": x}, y)])
    assert data.calls[0].extras["0"].tolist() == [0, 1, 2, 3]


def test_extras_that_belong_to_a_call_keep_calls_as_they_are():
    data = read(linear(), [{"x": normal(4, 3), "id": "a"}, {"x": normal(4, 3), "id": "b"}])
    assert not data.sampled
    assert data.size == 2
    assert "'id'" in data.notes[0]
    assert data.calls[0].extras["id"] == "a"


def test_an_input_that_is_a_tree_may_come_alone():
    x = normal(4, 3)
    model = ji.from_function(lambda p, d: d["a"] + d["b"], {}, ({"a": x, "b": x},))
    data = read(model, [{"a": x, "b": x}])
    assert data.shapes() == {"x.a": (4, 3), "x.b": (4, 3)}
    assert set(data.batches()[0]["x"]) == {"a", "b"}
    np.testing.assert_allclose(model(**data.batches()[0]), 2 * x)


def test_an_iterator_is_read_once():
    batches = iter([normal(2, 3) for _ in range(3)])
    assert read(linear(), batches).size == 6
    assert next(batches, None) is None


def test_fixed_values_are_filled_in():
    model = converted(("batch", 3), {"batch": (1, None)})
    x = normal(4, 3)
    for batch in ((x,), (x, 2.0), {"x": x}):
        data = read(model, [batch])
        assert data.sampled
        assert len(data.calls[0].arrays) == 1
        np.testing.assert_allclose(model(**data.batches()[0]), x * 3 + 2, atol=1e-6)
    assert read(model, [(x, np.arange(4))]).by_sample == ("0",)  # not the fixed input


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        ([], InputError, "required at least one batch"),
        (iter(()), InputError, "required at least one batch"),
        (np.ones((4, 3), np.float32), InputTypeError, "one batch alone is [batch]"),
        ({"x": np.ones((4, 3), np.float32)}, InputTypeError, "one batch alone is [batch]"),
        (None, InputTypeError, "NoneType"),
        ([np.ones((0, 3), np.float32)], InputError, "batch 0: holds no sample"),
        ([np.ones((4,), np.float32)], InputError, "rank"),
        ([np.ones((4, 3))], InputTypeError, "float64"),
        ([np.ones((4, 3), np.int32)], InputTypeError, "int32"),
        ([{"y": np.ones((4, 3), np.float32)}], InputError, "x: missing"),
        ([np.full((4, 3), np.nan, np.float32)], InputError, "12 of 12 values are NaN"),
        ([["text"]], InputTypeError, "str"),
        ([np.ones((4, 5), np.float32)], InputError, "the model fails on inputs float32[4, 5]"),
    ],
)
def test_what_cannot_be_read_is_refused(data, kind, words):
    with pytest.raises(kind) as caught:
        read(linear(), data)
    assert words in str(caught.value)


def test_all_bad_batches_are_named_at_once():
    nan = np.ones((2, 3), np.float32)
    nan[1, 2] = np.nan
    with pytest.raises(InputError) as caught:
        read(linear(), [normal(2, 3), nan, normal(2), normal(2, 3)])
    text = str(caught.value)
    assert "batch 1" in text
    assert "the first in row 1" in text
    assert "batch 2" in text
    assert "batch 0" not in text
    with pytest.raises(InputError, match="batch 1: lacks y"):
        read(linear(), [{"x": normal(2, 3), "y": 1}, {"x": normal(2, 3)}])


def test_sizes_of_a_converted_model_are_checked():
    model = converted(("batch", 3), {"batch": (1, 4)})
    with pytest.raises(InputError, match=r"(?s)batch 0.*must be 3"):
        read(model, [normal(2, 5)])
    with pytest.raises(InputError, match="outside the sizes"):
        read(model, [normal(5, 3)])
    with pytest.raises(InputTypeError, match="float16"):
        read(model, [normal(2, 3).astype(np.float16)])
    assert read(model, [normal(4, 3)]).high == 4
    with pytest.raises(InputError, match="1 to 4 samples"):
        read(model, [normal(4, 3)]).rebatch(5)


def test_integers_become_the_dtype_of_the_input():
    model = ji.from_function(lambda p, i: p[i], jnp.arange(300.0), (jnp.ones((2,), jnp.int32),))
    data = read(model, [np.array([1, 2, 255], np.uint8)])
    assert data.calls[0].arrays[0].dtype == np.int32
    with pytest.raises(InputError, match="does not fit int32"):
        read(model, [np.array([1, 2**40])])


def test_models_that_cannot_be_searched_are_refused():
    unknown = ji.from_function(lambda p, x: x, {})
    with pytest.raises(InputError, match="without example inputs"):
        read(unknown, [normal(2, 3)])
    model = converted(("batch", 3), {"batch": (1, None)})
    model.program.random = True
    with pytest.raises(InputError, match="samples random numbers"):
        read(model, [normal(2, 3)])


# Whether axis 0 counts samples


def test_a_symbol_that_other_axes_use_does_not_count_samples():
    model = converted(("n", "n"), {"n": (1, None)})
    data = read(model, [normal(3, 3)])
    assert not data.sampled
    assert "other axes" in data.notes[0]


def test_a_fixed_batch_allows_that_one_alone():
    data = read(converted((4, 3)), [normal(4, 3), normal(4, 3)])
    assert data.sampled
    assert data.fixed == 4
    assert data.rebatch(4).size == 8
    with pytest.raises(InputError, match="exactly 4"):
        data.rebatch(2)
    assert [call.size for call in data.take(3).calls] == [3]
    assert data.take(3).batch == 4  # filled
    a, b = split(data)
    assert a.size == b.size == 4
    assert a.batch == 4


def test_a_function_that_reshapes_to_its_batch_takes_that_one_alone():
    model = ji.from_function(lambda p, x: x.reshape(4, 3) * p, jnp.float32(2), (jnp.ones((4, 3)),))
    assert read(model, [normal(4, 3)]).fixed == 4


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda p, x: x.sum(), "result 0 has no axis 0"),
        (lambda p, x: (x, x.mean(0)), "result 1 has no axis 0"),
        (lambda p, x: x - x.mean(0), "depend on the other samples"),
        (lambda p, x: jax.nn.softmax(x, 0), "depend on the other samples"),
        (lambda p, x: jnp.cumsum(x, 0), "depend on the other samples"),
        (lambda p, x: x * jnp.arange(len(x))[:, None], "depend on the other samples"),
    ],
)
@pytest.mark.parametrize("rows", [1, 4])
def test_samples_that_are_mixed_are_no_samples(fn, words, rows):
    model = ji.from_function(fn, {}, (jnp.ones((rows, 3)),))
    data = read(model, [normal(rows, 3), normal(rows, 3)])
    assert not data.sampled
    assert words in data.notes[0]
    assert data.batch == 1
    with pytest.raises(InputError, match="cannot be regrouped"):
        data.rebatch(2)
    with pytest.raises(InputError, match="cannot be regrouped"):
        data.shapes(2)


def test_without_the_check_mixing_is_not_seen():
    model = ji.from_function(lambda p, x: x - x.mean(0), {}, (jnp.ones((4, 3)),))
    assert read(model, [normal(4, 3)], check=False).sampled


def test_scalars_and_unequal_rows_are_no_samples():
    model = ji.from_function(lambda p, x, t: x * t, {}, (jnp.ones((4, 3)), jnp.float32(2)))
    data = read(model, [(normal(4, 3), 2.0)])
    assert not data.sampled
    assert data.shapes() == {"x0": (4, 3), "x1": ()}
    model = ji.from_function(lambda p, x, y: x @ y, {}, (jnp.ones((4, 3)), jnp.ones((3, 5))))
    assert "differs" in read(model, [(normal(4, 3), normal(3, 5))]).notes[0]


# Regrouping


def rows_of(data):
    return np.concatenate([call.arrays[0][: call.size, 0] for call in data.calls])


def numbered(count, width=3, start=0):
    return np.arange(start, start + count, dtype=np.float32)[:, None] * np.ones(width, np.float32)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 11, 16])
def test_regrouped_samples_are_the_same_in_order(n):
    batches = [(numbered(4), np.arange(4)), (numbered(4, start=4), np.arange(4, 8)),
               (numbered(3, start=8), np.arange(8, 11))]  # fmt: skip
    data = read(linear(), batches).rebatch(n)
    assert data.size == 11
    assert {len(call.arrays[0]) for call in data.calls} == {n}
    np.testing.assert_array_equal(rows_of(data), np.arange(11))
    labels = np.concatenate([call.extras["0"][: call.size] for call in data.calls])
    np.testing.assert_array_equal(labels, np.arange(11))
    last = data.calls[-1]
    np.testing.assert_array_equal(last.arrays[0][:, 0], last.extras["0"])  # filled alike


def test_calls_all_have_the_size_of_the_first():
    data = read(linear(), [numbered(4), numbered(2, start=4)])
    assert [call.size for call in data.calls] == [4, 2]
    assert data.calls[1].arrays[0][:, 0].tolist() == [4, 5, 4, 5]
    assert data.uniform


def test_samples_of_other_shapes_are_regrouped_apart():
    model = ji.from_function(lambda p, x: x * 2, {}, (jnp.ones((2, 3)),))
    batches = [numbered(3, 5), numbered(3, 7, 3), numbered(3, 5, 6)]
    data = read(model, batches).rebatch(4)
    assert not data.uniform
    assert sorted((c.arrays[0].shape, c.size) for c in data.calls) == [
        *[((4, 5), 2), ((4, 5), 4), ((4, 7), 3)]
    ]
    assert sorted(rows_of(data).tolist()) == list(range(9))
    outs = run_all(lambda arrays: [model(*arrays)], data)
    assert sum(len(out) for (out,) in outs) == 9


def test_take_keeps_the_shapes_where_there_are_enough():
    data = read(linear(), [numbered(4), numbered(4, start=4)])
    assert (data.take(6).size, data.take(6).batch) == (6, 4)
    assert (data.take(2).size, data.take(2).batch) == (2, 2)
    assert data.take(100).size == 8
    assert data.take(0).calls == ()


@pytest.mark.parametrize("count", [2, 3, 10])
def test_split_shares_no_sample_and_loses_none(count):
    data = read(linear(), [numbered(count)])
    for seed in range(3):
        a, b = split(data, seed)
        assert a.size + b.size == count
        assert min(a.size, b.size) >= 1
        assert sorted([*rows_of(a), *rows_of(b)]) == list(range(count))
    again = split(data, 0)[0]
    np.testing.assert_array_equal(rows_of(again), rows_of(split(data, 0)[0]))
    if count == 10:
        assert any(set(rows_of(split(data, s)[0])) != set(rows_of(again)) for s in (1, 2, 3))
        assert split(data, 0, 0.2)[0].size == 2


def test_one_sample_judges_and_nothing_calibrates():
    calibration, judging = split(read(linear(), [numbered(1)]))
    assert (calibration.size, judging.size) == (0, 1)
    assert calibration.batches() == []
    assert calibration.batch == 0
    with pytest.raises(InputError, match="share"):
        split(judging, calibration=1.0)


def test_calls_are_split_whole_if_they_are_not_sampled():
    model = ji.from_function(lambda p, x: x.sum(), {}, (jnp.ones((4, 3)),))
    a, b = split(read(model, [numbered(4, start=i) for i in range(5)]))
    assert (a.size, b.size) == (2, 3)


def test_batches_are_what_transforms_and_compile_take():
    model = linear()
    data = read(model, [(normal(4, 3), np.arange(4))])
    ji.calibrate(model, data.batches())
    exe = ji.compile(model, data.shapes(6))
    outs = run_all(exe.flat, data.rebatch(6))
    assert [out.shape for (out,) in outs] == [(4, 3)]  # two rows only fill the call
    np.testing.assert_allclose(outs[0][0], data.calls[0].arrays[0], rtol=1e-6)


# Files


def test_npz(tmp_path):
    path = tmp_path / "data.npz"
    x = numbered(19)
    np.savez(path, x=x, label=np.arange(19), names=np.float32([1, 2]))
    data = read_npz(linear(), path)
    assert (data.size, data.batch) == (19, 8)
    assert data.by_sample == ("label",)
    assert data.calls[0].extras["names"].tolist() == [1, 2]
    np.testing.assert_array_equal(rows_of(data), np.arange(19))
    assert read_npz(linear(), path, batch=5).batch == 5


def test_npz_by_place_and_what_it_lacks(tmp_path):
    np.savez(tmp_path / "a.npz", numbered(4))
    assert read_npz(linear(), tmp_path / "a.npz").size == 4
    np.savez(tmp_path / "b.npz", y=numbered(4))
    with pytest.raises(InputError, match=r"missing: x.*\n.*It holds: y"):
        read_npz(linear(), tmp_path / "b.npz")
    model = ji.from_function(lambda p, x, y: x + y, {}, (numbered(2), numbered(2)))
    np.savez(tmp_path / "c.npz", x0=numbered(4), x1=numbered(5))
    with pytest.raises(InputError, match="x0: 4, x1: 5"):
        read_npz(model, tmp_path / "c.npz")


def test_npz_of_a_fixed_batch_with_a_rest_is_filled(tmp_path):
    np.savez(tmp_path / "a.npz", x=numbered(10))
    data = read_npz(converted((4, 3)), tmp_path / "a.npz")
    assert data.sampled
    assert [call.size for call in data.calls] == [4, 4, 2]


def test_npz_narrow_types(tmp_path):
    model = ji.from_function(lambda p, x: x * 2, {}, (jnp.ones((2, 3), jnp.bfloat16),))
    np.savez(tmp_path / "a.npz", x=numbered(4))
    assert read_npz(model, tmp_path / "a.npz").calls[0].arrays[0].dtype == jnp.bfloat16


def test_an_exported_function_has_a_fixed_batch(tmp_path):
    ji.save(linear(), tmp_path / "m")
    model = ji.load(tmp_path / "m")
    assert isinstance(model.program, StableHLOProgram)
    assert read(model, [normal(2, 3)]).fixed == 2
