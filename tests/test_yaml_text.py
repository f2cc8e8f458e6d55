"""YAML that does harm, by accident or by intention."""

import time

import pytest

from selfsight.errors import UserError
from selfsight.interop.up_yaml import read_document
from selfsight.yaml_text import parse_yaml, read_yaml

LAUGHS = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20)
)
MERGES = "a0: &a0 {k0: 1, l0: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], k{n}: 1}}\n" for n in range(1, 20)
)
HOSTILE = {
    "aliases that multiply": (LAUGHS, "stand for more than"),
    "merges that multiply": (MERGES, "stand for more than"),
    "an anchor in itself": ("a: &a [*a]", "contains its own alias"),
    "a mapping in itself": ("a: &a {b: *a}", "contains its own alias"),
    "a merge of itself": ("a: &a\n  <<: *a\n", "contains its own alias"),
    "depth": ("a: " + "[" * 20_000, "nested too deeply"),
    "depth in mappings": ("{a: " * 20_000, "nested too deeply"),
    "length": ("a: 1\n" * 300_000, "at most 1,048,576"),
    "a key of a list": ("[a, b]: 1", "not valid YAML"),
    "no date": ("a: 2024-99-99", "not valid YAML"),
    "an object": ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    "a zero byte": ("a: \0", "not valid YAML"),
    "a long number": ("a: " + "1" * 5000, "not valid YAML"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_yaml_that_does_harm_is_one_line_at_once(tmp_path, what):
    text, reason = HOSTILE[what]
    (tmp_path / "x.yaml").write_text(text)
    for read in (read_yaml, read_document):
        began = time.monotonic()
        with pytest.raises(UserError, match=reason) as error:
            read(tmp_path / "x.yaml")
        assert "\n" not in str(error.value)
        assert time.monotonic() - began < 10


def test_aliases_that_people_use_are_read():
    text = "base: &base {lr: 1, betas: [0.9, 0.95]}\na: {<<: *base, lr: 2}\nb: *base\n"
    tree = parse_yaml(text, "x")
    assert tree["a"] == {"lr": 2, "betas": [0.9, 0.95]}
    assert tree["b"] == tree["base"]
    assert parse_yaml("", "x") is None


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: \xc3"])
def test_what_is_no_text_is_one_line(tmp_path, content):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"Cannot read .*no UTF-8"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="no plain file"):
        read_yaml(tmp_path)
