"""Rules by path: the first match decides, and no rule is idle in silence."""

import pytest

from jaxinfer.core.errors import InputError
from jaxinfer.core.selectors import Rule, read_rules, resolve, rule

PATHS = ["encoder.0.query.weight", "encoder.0.query.bias", "encoder.1.mlp.weight", "head.weight"]
DEFAULTS = {"scheme": "W8A16", "group": None}


def test_the_first_match_decides():
    rules = [
        rule(r"head\..*", ignore=True),
        rule(r".*\.mlp\.weight", scheme="W4A16", group=64),
        rule(r".*weight", group=32),
    ]
    assert resolve(rules, PATHS, DEFAULTS) == {
        "encoder.0.query.weight": {"scheme": "W8A16", "group": 32},
        "encoder.0.query.bias": DEFAULTS,
        "encoder.1.mlp.weight": {"scheme": "W4A16", "group": 64},
        "head.weight": None,
    }


def test_no_rules_and_no_paths():
    assert resolve([], PATHS, DEFAULTS) == dict.fromkeys(PATHS, DEFAULTS)
    assert resolve([], [], DEFAULTS) == {}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([rule("decoder.*")], ["rule 1", "matches no path"]),
        ([rule("head.wieght")], ["near: 'head.weight'"]),
        ([rule("mlp")], ["within 'encoder.1.mlp.weight'", "not the whole path"]),
        ([rule(".*"), rule("head.*")], ["rule 2", "decided by rule 1"]),
        ([rule("(")], ["no regular expression"]),
        ([rule(".*", shceme="W8A8")], ["unknown setting 'shceme'", "known: scheme"]),
        ([rule(".*", ignore=True, group=3)], ["ignore leaves no use for group"]),
        ([rule("("), rule(".*", x=1)], ["rule 1", "rule 2"]),
        ([rule("nothing"), rule("none")], ["rule 1", "rule 2"]),
    ],
)
def test_rules_that_are_mistakes(rules, words):
    with pytest.raises(InputError) as error:
        resolve(rules, PATHS, DEFAULTS)
    for word in words:
        assert word in str(error.value)


def test_rules_of_a_file(tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text(
        "[[rule]]\npath = 'head\\..*'\nignore = true\n"
        "[[rule]]\npath = '.*'\nscheme = \"W4A16\"\ngroup = 64\n"
    )
    assert read_rules(file) == [
        Rule(r"head\..*", {}, True),
        Rule(".*", {"scheme": "W4A16", "group": 64}),
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "required tables [[rule]]"),
        ("rule = 3", "required tables [[rule]]"),
        ("[[rule]]\npath = '.*'\n[other]\n", "got other"),
        ("[[rule]]\nscheme = 'W8A8'\n", "rule 1: required path"),
        ("[[rule]]\npath = '.*'\nignore = 'yes'\n", "ignore 'yes'"),
        ("[[rule]\n", "rules.toml"),
        ("\xff", "rules.toml"),
    ],
)
def test_files_that_are_mistakes(tmp_path, text, word):
    file = tmp_path / "rules.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"rules"):
        read_rules(file)
    with pytest.raises(InputError) as error:
        read_rules(file)
    assert word in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_rules(tmp_path / "none.toml")
