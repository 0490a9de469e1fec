"""Transforms compose as functions do, in a legal order; audits leave nothing out."""

import jax.numpy as jnp
import pytest

import jaxinfer as ji
from jaxinfer.core.audit import Audit, Entry, audits, merged, size, with_audit
from jaxinfer.core.errors import InputError
from jaxinfer.core.transform import Transform, chain, identity, staged


def model(value=2.0):
    return ji.from_function(lambda p, x: x * p, jnp.full(3, value), (jnp.ones(3),))


def scale_by_data(seen, stage=""):
    """Multiplies the parameter by the data's sum, seen by ``init`` alone."""

    def init(model, *data):
        seen.append((float(model.params[0]), *data))
        return sum(data)

    def update(model, state):
        model = staged(model, stage) if stage else model
        return model.replace(params=model.params * state)

    return Transform(init, update, stage)


def test_identity_and_chain_laws():
    seen = []
    one, start = scale_by_data(seen), model()
    assert identity()(start, 3.0) is start
    assert chain()(start, 3.0) is start
    for same in (chain(one), chain(identity(), one), chain(one, identity()), chain(chain(one))):
        assert float(same(start, 3.0).params[0]) == 6
    left, right = chain(chain(one, one), one), chain(one, chain(one, one))
    assert float(left(start, 3.0).params[0]) == float(right(start, 3.0).params[0]) == 54
    assert float(start.params[0]) == 2


def test_each_init_sees_what_those_before_it_left():
    seen = []
    one = scale_by_data(seen)
    state = chain(one, one, one).init(model(), 1.0, 2.0)
    assert [entry[0] for entry in seen] == [2, 6, 18]
    assert state == (3, 3, 3)
    assert float(chain(one, one, one).update(model(), state).params[0]) == 54
    assert len(seen) == 3, "update sees no data"
    assert float(chain(one, one, one)(model(), 1.0, 2.0).params[0]) == 54
    assert len(seen) == 6, "a call goes through each once"


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ("quantize", "cast", "cast after quantize: the legal order is cast, fold"),
        ("quantize", "quantize", "quantize: this model has been through it already"),
        ("prune", "fold", "fold after prune"),
    ],
)
def test_an_illegal_order(first, second, word):
    one, two = scale_by_data([], first), scale_by_data([], second)
    with pytest.raises(InputError, match=word):
        chain(one, two)
    with pytest.raises(InputError, match=word):
        chain(one, identity(), two)
    with pytest.raises(InputError, match=word):
        two(one(model(), 1.0), 1.0)


def test_a_legal_order():
    stages = ("cast", "fold", "prune", "quantize")
    whole = chain(*(scale_by_data([], stage) for stage in stages))
    assert whole.stage == "cast fold prune quantize"
    assert chain(*(scale_by_data([], stage) for stage in ("fold", "cast", "quantize"))).stage
    assert whole(model(), 1.0).provenance["stages"] == list(stages)
    with pytest.raises(ValueError, match="required one of"):
        chain(scale_by_data([], "quantise"), identity(), scale_by_data([], "cast"))


ENTRIES = (
    Entry("a.weight", "changed", "W8A16", before=4000, after=1040),
    Entry("a.bias", "unfit", "one axis", before=40, after=40),
    Entry("b", "blocked", "mul", "model.py:12:3 (forward)", before=2048, after=2048),
)


def test_an_audit_reads_and_comes_back():
    audit = Audit("quantize", ENTRIES)
    lines = str(audit).splitlines()
    assert lines[0] == "quantize: 1 of 3 parameters changed; 5.9 KiB -> 3.1 KiB"
    assert lines[3].split() == ["blocked", "b", "mul", "2.0", "KiB", "->", "2.0", "KiB",
                                "model.py:12:3", "(forward)"]  # fmt: skip
    provenance = with_audit(with_audit({"source": "x"}, audit), Audit("none", ()))
    assert audits(provenance) == (audit, Audit("none", ()))
    assert provenance["source"] == "x"
    assert audits({}) == ()


def test_strict_names_all_that_is_blocked():
    Audit("quantize", ENTRIES[:2]).require()
    more = (*ENTRIES, Entry("c", "blocked", "concatenate"))
    with pytest.raises(InputError) as error:
        Audit("quantize", more).require()
    assert "b: mul model.py:12:3" in str(error.value)
    assert "c: concatenate" in str(error.value)


def test_no_parameter_is_left_out():
    order = ["b", "a.weight", "a.bias"]
    assert [e.path for e in merged(ENTRIES, order)] == order
    with pytest.raises(ValueError, match=r"no entry for a\.bias"):
        merged((ENTRIES[0], ENTRIES[2]), order)
    with pytest.raises(ValueError, match="b has two entries"):
        merged((*ENTRIES, ENTRIES[2]), order)
    with pytest.raises(ValueError, match="status: required one of"):
        Entry("a", "skipped")


def test_sizes():
    assert [size(n) for n in (0, 1023, 1024, 5 << 20, 7 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 MiB",
        "7168.0 GiB",
    ]
