"""Layers, errors that name key and remedy, origins, YAML."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsight import config as layers
from selfsight.errors import UserError
from selfsight.evaluate.protocols.config import KnnConfig, compose_cached, compose_trained
from selfsight.methods import METHODS
from selfsight.pretraining.config import RunConfig, compose, json_schema
from selfsight.pretraining.recipes import recipes
from tests.channels import keys_of


def problems(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        compose("digits/simclr", list(overrides))
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.temprature=0.2", "Unknown key 'method.temprature'. Did you mean 'temperature'?"),
        ("temperature=0.2", "Unknown key 'temperature'. Did you mean 'method.temperature'?"),
        ("views.0.flp=0.5", "Unknown key 'views.0.flp'. Did you mean 'flip'?"),
        ("method.temperature=hot", "method.temperature=hot: input should be a valid number"),
        ("method.temperature=-1", "method.temperature=-1: input should be greater than 0"),
        ("epochs=0", "epochs=0: input should be greater than or equal to 1"),
        ("method.name=simcrl", "method.name=simcrl: no such method. Did you mean 'simclr'"),
        ("optimizer.name=sdg", "optimizer.name=sdg: no such optimizer. Did you mean 'sgd'"),
        ("views=simcrl", "views=simcrl: no such preset. Did you mean 'simclr'"),
        ("views.7.flip=0.5", "'views.7': the items of the list 'views' are 0 to 0"),
        ("views=[]", "views=[]: list should have at least 1 item"),
        ("epochs", "'epochs' is not key=value"),
        ("optimizer.lr=.nan", "optimizer.lr=nan: input should be a finite number"),
        ("data.mean=[1, 2]", "data.mean=[1, 2]: 2 numbers for data.channels=3; give 3"),
        ("data.mean=[124, 117, 104]", "data.mean=[124, 117, 104]: pixels are from 0 to 1"),
        ("data.std=[0.2, 0, 0.2]", "data.std=[0.2, 0, 0.2]: pixels, from 0 to 1, are div"),
        ("data.range=[3, 3]", "data.range=[3, 3]: give the lowest value"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(override, message):
    (line,) = problems(override)
    assert message in line


def test_all_problems_at_once():
    lines = problems("epochs=0", "method.temprature=1", "optimizer.lr=fast")
    assert len(lines) == 3


@pytest.mark.parametrize("text", ["1e-3", "1E3", "-2e+5", "1.5e2", ".5e1"])
def test_numbers_with_exponent(text):
    assert layers.parse_yaml(text, "test") == float(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_of_python_is_a_number(value):
    assert layers.parse_yaml(repr(value), "test") == value


@pytest.mark.parametrize("text", ["1e", "e5", "1-3", "v1.5e2", "a1e3"])
def test_other_words_stay_words(text):
    assert layers.parse_yaml(text, "test") == text


def test_a_repeated_key_is_an_error(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("epochs: 1\nseed: 1\nepochs: 2\n")
    with pytest.raises(UserError, match=r"twice\.yaml line 3: .*'epochs' is given twice"):
        compose(str(path))


def test_broken_yaml_names_file_and_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("epochs: 1\nmethod: {name: simclr\n")
    with pytest.raises(UserError, match=r"broken\.yaml line"):
        compose(str(path))


def test_origins(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: digits/simclr\nepochs: 7\n")
    composed = compose(str(path), ["seed=3", "views.0.rotation=1"])
    origin = {key: who for key, _, who in composed.rows()}
    assert origin["seed"] == "command line"
    assert origin["epochs"] == str(path)
    assert origin["method.temperature"] == "recipe digits/simclr"
    assert origin["optimizer.momentum"] == "default"
    assert origin["views.0.rotation"] == "command line"
    assert "preset digits" in origin["views.0.size"]
    assert composed.config.epochs == 7
    assert composed.config.views[0].rotation == 1


def test_another_method_starts_from_its_own_defaults():
    config = compose("digits/simclr", ["method.name=byol"]).config
    assert config.method == METHODS["byol"].Config()


def test_another_backbone_drops_the_options_of_the_one_below():
    config = compose("digits/simclr", ["backbone.name=resnet34"]).config
    assert config.backbone.options == {}
    assert config.backbone.small_images


def test_a_preset_can_be_named_and_then_changed():
    config = compose("digits/simclr", ["views=byol", "views.1.size=64", "views.1.blur=0"]).config
    assert [g.size for g in config.views] == [224, 64]
    assert config.views[1].blur == 0


def test_the_order_of_overrides_does_not_matter_to_a_new_method():
    overrides = ["method.name=moco_v2", "method.temperature=0.5"]
    for order in (overrides, overrides[::-1]):
        config = compose("digits/byol", order).config
        assert (config.method.name, config.method.temperature) == ("moco_v2", 0.5)


@pytest.mark.parametrize("key", ["method=byol", "backbone=resnet50", "optimizer=lars"])
@pytest.mark.parametrize("more", [[], ["backbone.drop_path=0.1", "optimizer.lr=0.3"]])
def test_a_name_alone_is_short_for_the_key_name(key, more):
    section, name = key.split("=")
    expected = compose("digits/simclr", [f"{section}.name={name}", *more]).config
    assert getattr(expected, section).name == name
    for order in ([key, *more], [*more, key]):
        assert compose("digits/simclr", order).config == expected


def test_names_alone_in_files_and_in_evaluations(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("backbone: resnet34\nschedule: constant\n")
    config = compose(str(path)).config
    assert (config.backbone.name, config.schedule.name) == ("resnet34", "constant")
    keys = ["optimizer=lars", "schedule=constant", "optimizer.lr=0.5"]
    trained = compose_trained("linear-augmented", "linear-augmented", {}, 32, keys)
    assert (trained.optimizer.name, trained.optimizer.lr) == ("lars", 0.5)
    assert trained.schedule.name == "constant"
    (known,) = problems("optimizer=sdg")
    assert "optimizer.name=sdg" in known
    assert compose_cached(KnnConfig, {}, ["backbone=resnet34"]).backbone.name == "resnet34"


def test_a_pretrained_tag_is_refused_for_a_new_run_alone(tmp_path):
    keys = ["backbone.name=resnet18.a1_in1k"]
    with pytest.raises(UserError, match=r"'a1_in1k' names .* set weights=timm:resnet18.a1_in1k to"):
        compose("digits/simclr", keys, str(tmp_path))
    (tmp_path / "config.yaml").write_text("")
    assert compose("digits/simclr", keys, str(tmp_path)).config.backbone.name == keys[0][14:]


def test_views_default_to_the_methods_preset():
    small = compose(None, ["method.name=byol", "backbone.small_images=true"]).config
    large = compose(None, ["method.name=byol"]).config
    assert (len(small.views), small.views[0].size) == (2, 32)
    assert large.views[0].size == 224
    assert large.views[0].blur == 1.0


@pytest.mark.parametrize(
    ("method", "channels", "counts", "preset"),
    [
        ("byol", 1, [1, 1], "gray, number and sizes of byol"),
        ("byol", 12, [1, 1], "multispectral, number and sizes of byol"),
        ("dino", 4, [1, 1, 8], "multispectral, number and sizes of dino"),
        ("mae", 4, [1], "mae"),  # crop and flip need no colours
        ("byol", 3, [1, 1], "byol"),
    ],
)
def test_default_views_have_no_colours_where_images_have_none(method, channels, counts, preset):
    found = compose(None, [f"method.name={method}", *keys_of(channels)[:3]])
    views = found.config.views
    assert [group.count for group in views] == counts
    assert (views[-1].size, views[0].size) == (96 if method == "dino" else 224, 224)
    assert views[0].crop_scale == ((0.4, 1.0) if method == "dino" else views[0].crop_scale)
    assert found.origins.of("views.0.flip") == f"default (preset {preset})"
    keys = [f"method.name={method}", *keys_of(channels)[:3], "views.0.size=[8, 24]"]
    turned = [] if views[0].rotate90 == 0 else ["views.0.rotate90=0"]
    changed = compose(None, [*keys, *turned]).config.views[0]
    assert changed.sides == (8, 24)
    assert changed.flip == views[0].flip
    if turned:
        with pytest.raises(UserError, match=r"rotate90=0\.75: only of square views"):
            compose(None, keys)


def test_views_that_need_colours_are_refused_for_other_images():
    with pytest.raises(UserError) as error:
        compose("digits/simclr", [*keys_of(4)[:3], "views=simclr"])
    assert str(error.value) == (
        "views.0.saturation=0.8: needs red, green and blue, and the images have data.channels=4; "
        "set views=multispectral, or views.0.saturation=0"
    )
    gray = compose("digits/simclr", keys_of(1)[:3]).config  # the preset of digits has none
    assert gray.views == compose("digits/simclr").config.views
    assert gray.fingerprint() != compose("digits/simclr").config.fingerprint()


def test_a_file_may_not_be_based_on_what_is_no_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: 3\n")
    with pytest.raises(UserError, match="base=3 is not a recipe"):
        compose(str(path))


def test_unknown_recipe_gets_near_names():
    with pytest.raises(UserError, match="Did you mean 'digits/simclr'"):
        compose("digit/simclr")


def test_frozen():
    config = compose("digits/simclr").config
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 3


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_valid_and_survive_a_round_trip(no_network, name, tmp_path):
    config = compose(name).config
    path = tmp_path / "again.yaml"
    path.write_text(config.to_yaml())
    assert compose(str(path)).config == config


def test_every_method_has_its_recipes():
    for name, method in METHODS.items():
        data = ("digits", "cifar10") if method.frozen_teacher == "no" else ("digits",)
        assert {f"{folder}/{name}" for folder in data} <= set(recipes())


def test_another_config_is_another_default_folder():
    runs = {compose("digits/simclr", o).config.run for o in ([], ["seed=1"], ["seed=2"])}
    assert len(runs) == 3
    assert compose("digits/simclr", ["seed=1"]).config.run in runs
    same = compose("digits/simclr", ["checkpoint.keep=5"]).config.run
    assert same == compose("digits/simclr").config.run


# As in revision 1c0a771: folders of older runs stay those of the same configuration.
FINGERPRINTS = {
    "digits/simclr": "107935",
    "digits/dino": "092f06",
    "cifar10/moco_v2": "02da71",
    "cifar10/vicreg": "72bd5f",
    "cifar10/ijepa": "08579a",
    "imagenet/byol": "354ef6",
    "imagenet/swav": "06b3e4",
    "imagenet/mae": "063294",
}
PROTOCOLS = {"linear-augmented": "a4c4ec", "finetune": "e77236"}
FREE = ["run=x", "device=cpu", "compile=false", "log_every=3", "checkpoint.keep=5", "resume=r"]
FREE += ["start_epoch=2", "save_as=a", "log.csv=true", "weights=w.pt", "save_best=true"]
FREE += ["data.workers=3", "data={max_bad: 0.5}", "extend=true"]
FREE_MEASURED = ["untrained=false", "allow_overlap=true", "format=timm", *FREE[1:5], FREE[-3]]


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_runs_of_older_versions_keep_their_fingerprint(name):
    assert compose(name).config.fingerprint() == FINGERPRINTS[name]
    assert compose(name, FREE).config.fingerprint() == FINGERPRINTS[name]
    assert compose(name, ["batch_size=32"]).config.fingerprint() != FINGERPRINTS[name]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_evaluations_of_older_versions_keep_their_fingerprint(name):
    base = {"data": {"source": "folder"}, "seed": 1}
    for keys in ([], FREE_MEASURED):
        assert compose_trained(name, name, base, 224, keys).fingerprint() == PROTOCOLS[name]


class Inner(layers.Config):
    kept: int = 1
    free: int = layers.may_change(2)


class Outer(layers.Config):
    one: Inner = Inner()
    many: list[Inner] = []  # noqa: RUF012 (pydantic copies it)
    maybe: Inner | None = None
    section: Inner = layers.may_change(Inner())


def test_fields_that_may_change_are_left_out_at_any_depth():
    outer = Outer(many=[Inner(), Inner(kept=3)], maybe=Inner())
    one = {"kept": 1}
    assert outer.identity() == {"one": one, "many": [one, {"kept": 3}], "maybe": one}
    assert Outer().identity()["maybe"] is None
    free = ("one.free", "maybe.free", "section", "section.kept")
    assert all(map(Outer.key_may_change, free))
    assert not any(map(Outer.key_may_change, ("one", "one.kept", "many", "fre", "sectio")))


@pytest.mark.parametrize("key", FREE[1:])
def test_free_keys_keep_the_default_folder(key):
    assert compose("digits/simclr", [key]).config.run == "runs/digits-simclr"


def test_folded_overrides_go_over_the_tree_one_after_the_other():
    tree = {"a": {"b": 1, "c": 2}, "l": [{"x": 1}, {"x": 2}]}
    assert layers.fold(tree, ["a.b=3", "l.1.x=4"]) == {
        "a": {"b": 3, "c": 2},
        "l": [{"x": 1}, {"x": 4}],
    }
    assert layers.fold(
        {}, ["v=name", "v.0.x=1"], lambda a, b: {**a, "seen": [*a.get("seen", []), b]}
    ) == {"seen": [{"v": "name"}, {"v": {"0": {"x": 1}}}]}


def test_schema_knows_every_key():
    schema = json_schema()
    assert set(schema["properties"]) == {*RunConfig.model_fields, "base"}
    assert schema["additionalProperties"] is False
    assert "simclr" in schema["properties"]["views"]["anyOf"][0]["enum"]


leaves = st.integers() | st.booleans() | st.text("abc", min_size=1)
trees = st.recursive(
    st.dictionaries(st.text("xyz", min_size=1, max_size=2), leaves, max_size=3),
    lambda inner: st.dictionaries(
        st.text("xyz", min_size=1, max_size=2), leaves | inner, max_size=3
    ),
)


@given(trees, trees)
@settings(deadline=None)
def test_merge_laws(a, b):
    merged = dict(layers.flatten(layers.merge(a, b)))
    for key, value in layers.flatten(b):
        if value != {}:
            assert merged[key] == value
    assert layers.merge(a, {}) == a
    assert layers.merge(layers.merge(a, b), b) == layers.merge(a, b)


def test_differences_name_keys():
    assert layers.differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b: 1 -> 3"]


@pytest.mark.parametrize(
    "text",
    [
        "2024",
        "2024-01-02",
        "12:30",
        "yes",
        "1e5",
        "my photos #2",
        "a: b",
        "null",
        "~",
        "012",
        "a,b",
    ],
)
def test_a_path_is_its_text_and_not_what_yaml_reads(text):
    tree = layers.fold({}, [f"data.path={text}", f"run=x{text}"])
    assert tree == {"data": {"path": text}, "run": f"x{text}"}


def test_several_paths_quotes_and_nothing():
    fold = lambda *keys: layers.fold({}, keys)  # noqa: E731
    assert fold("data.path=[2023, 'my photos #2']") == {"data": {"path": ["2023", "my photos #2"]}}
    assert fold("data.path='a b'", 'weights="x"') == {"data": {"path": "a b"}, "weights": "x"}
    assert fold("weights=null", "resume=", "run=~") == {
        "weights": None,
        "resume": None,
        "run": None,
    }
    with pytest.raises(UserError, match=r"data\.path=: is empty"):
        fold("data.path=")
    with pytest.raises(UserError, match="not valid YAML"):
        fold("data.path=[a, b #2]")


def test_a_path_in_a_file_that_yaml_reads_otherwise_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("base: digits/simclr\ndata: {path: 2024}\nrun: 2024-01-02\n")
    with pytest.raises(UserError) as caught:
        compose(str(tmp_path / "x.yaml"))
    lines = str(caught.value).splitlines()
    assert "run=2024-01-02: YAML reads this as a date; put it in quotes" in lines
    assert any("data.path" in line and "put it in quotes" in line for line in lines)
