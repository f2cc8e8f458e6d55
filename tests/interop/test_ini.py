"""The typed INI language: what is written is read back, and what is wrong is named by its line."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfsight.errors import UserError
from selfsight.interop import ini

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers() | NUMBERS | st.text()
LITERALS = st.recursive(
    SCALARS,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=6,
)
VALUES = (
    st.integers()
    | NUMBERS
    | st.booleans()
    | st.text()
    | st.text(alphabet="@intsr#' \"=[]\\\n", max_size=20)
    | st.lists(LITERALS, max_size=3)
    | st.dictionaries(st.text(), LITERALS, max_size=3)
)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
COMMENTS = st.sampled_from(["", "  # a comment", " #", " # was 2@str", "\t# x = 'y'@list"])


def dump_value(value: Any) -> str:
    """`value@type`, which `ini.parse_value` reads as the same value."""
    kind = next(name for name, cls in ini.TYPES.items() if type(value) is cls)
    if kind != "str":
        return f"{value!r}@{kind}"
    risky = value != value.strip() or "@" in value or not value.isprintable()
    return f"{value!r}@str" if risky or value[:1] in ("'", '"') else f"{value}@str"


def dump(tree: dict, sections: tuple[str, ...] = ()) -> str:
    """A file of these keys.

    Args:
        sections: the mappings that become sections; the others are values.
    """
    flat = {key: value for key, value in tree.items() if key not in sections}
    lines = [f"{key} = {dump_value(value)}" for key, value in flat.items()]
    for name in sections:
        lines += [f"[{name}]", *(f"{key} = {dump_value(v)}" for key, v in tree[name].items())]
    return "\n".join(lines) + "\n"


@given(NAMES, VALUES, COMMENTS)
def test_any_typed_value_survives_a_round_trip(name, value, comment):
    text = f"# head\n\n  {name} = {dump_value(value)}{comment}\n"
    read = ini.parse(text, "x.ini")
    assert read.tree == {name: value}
    assert type(read.tree[name]) is type(value)
    assert read.lines == {name: 3}


@given(
    st.dictionaries(NAMES.map("f{}".format), VALUES, max_size=4),
    st.dictionaries(NAMES.map("s{}".format), st.dictionaries(NAMES, VALUES, max_size=3)),
)
def test_a_whole_file_survives_a_round_trip(flat, sections):
    text = dump({**flat, **sections}, tuple(sections))
    assert ini.parse(text, "x.ini").tree == {**flat, **sections}


@given(st.text(), st.sampled_from(list(ini.TYPES)))
def test_no_text_is_more_than_a_users_mistake(text, kind):
    for line in (text, f"key = {text}@{kind}"):
        with contextlib.suppress(UserError):
            ini.parse(line, "x.ini")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("k = @bool", False),
        ("k = True@bool", True),
        ("k = false@bool", False),
        ("k=7@int", 7),
        ("k = 1e-6@float", 1e-6),
        ("k = 3@float", 3.0),
        ("k = @str", ""),
        ("k = /data/a b#c@str", "/data/a b#c"),
        ("k = simclr-{epoch}-{lin_acc1:.2f}@str", "simclr-{epoch}-{lin_acc1:.2f}"),
        ("k = mail@example.org@str", "mail@example.org"),
        ("k = ' quoted '@str", " quoted "),
        ("k = 'tis@str", "'tis"),
        ("k = a=b@str  # 1@int", "a=b"),
        ("k = [2]@list", [2]),
        ("k = @list", []),
        ("k = {'devices': 6, 'strategy': 'ddp'}@dict # six", {"devices": 6, "strategy": "ddp"}),
        ("k = {}@dict", {}),
    ],
)
def test_values(line, value):
    read = ini.parse(line, "x.ini").tree["k"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("epochs", "'epochs': write key = value@type, [section], or # and a comment"),
        ("epochs = 100", "epochs = 100: has no type; write epochs = value@type"),
        ("epochs = 100@in", "no such type 'in'. Did you mean 'int'?"),
        ("epochs = 100@int extra", "has no type"),
        ("epochs = ten@int", "epochs = ten@int: is not a whole number"),
        ("epochs = 1.5@int", "is not a whole number"),
        ("epochs = @int", "is not a whole number"),
        ("lr = fast@float", "lr = fast@float: is not a number"),
        ("offline = maybe@bool", "is neither True nor False"),
        ("crops = (2,)@list", "is not a Python list: found a tuple"),
        ("crops = [2@list", "is not a Python list"),
        ("cfg = {'a': open('x')}@dict", "is not a Python dict"),
        ("2nd = 1@int", "'2nd' is not a key; use letters"),
        ("[ssl args]", "'[ssl args]' is not a section; write [name]"),
        ("seed = 2@int", "'seed' is given twice, first in line 1"),
    ],
)
def test_a_wrong_line_is_named_with_its_reason(line, reason):
    with pytest.raises(UserError) as error:
        ini.parse(f"seed = 1@int\n# fine\n{line}\n", "pretrain/x.ini")
    assert str(error.value).startswith("pretrain/x.ini:3: ")
    assert reason in str(error.value)


def test_all_wrong_lines_are_told_at_once():
    with pytest.raises(UserError) as error:
        ini.parse("epochs\n[a\nk = x@int\nk = 1@int\n[a]\nk = 2@int\nk = 3@int\n", "x.ini")
    numbers = [line.split(":")[1] for line in str(error.value).splitlines()]
    assert numbers == ["1", "2", "3", "7"]


def test_a_section_is_opened_once():
    with pytest.raises(UserError, match=r"x.ini:3: 'a' is given twice, first in line 1"):
        ini.parse("[a]\nk = 1@int\n[a]\n", "x.ini")


@pytest.mark.parametrize(
    ("argument", "path", "value"),
    [
        ("epochs=5", ("epochs",), 5),
        ("epochs=5@int", ("epochs",), 5),
        ("name=5", ("name",), "5"),  # the type is the one in the file
        ("cfg.devices=4", ("cfg", "devices"), 4),
        ("cfg={'devices': 1}", ("cfg",), {"devices": 1}),
        ("args.lr=1", ("args", "lr"), 1.0),
        ("args.new=0.5", ("args", "new"), 0.5),
        ("other.word=a b", ("other", "word"), "a b"),
        ("name={'train': 1}", ("name",), {"train": 1}),
        ("name={epoch}", ("name",), "{epoch}"),
        ("new='1'", ("new",), "1"),
        ("new=true", ("new",), True),
        ("new=1e-3", ("new",), 1e-3),
        ("new=", ("new",), ""),
    ],
)
def test_arguments_lie_over_the_file(argument, path, value):
    text = "epochs = 100@int\nname = a@str\ncfg = {'devices': 2}@dict\n[args]\nlr = 0.1@float\n"
    read = ini.parse(text, "x.ini")
    ini.override(read, [argument])
    found = read.tree
    for part in path:
        found = found[part]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("argument", ["epochs", "epochs=x", "=1", "epochs.a=1", "a b=1"])
def test_a_wrong_argument_is_named(argument):
    read = ini.parse("epochs = 100@int", "x.ini")
    with pytest.raises(UserError, match=f"'{argument}'"):
        ini.override(read, [argument])
