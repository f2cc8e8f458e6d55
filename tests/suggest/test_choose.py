"""The rules of `selfsight init`, without images: facts in, keys out."""

import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsight.pretraining.config import compose
from selfsight.suggest import advice
from selfsight.suggest.choose import setups
from selfsight.suggest.facts import ImageFacts, Machine, Pace
from selfsight.suggest.length import length_choices, plan_length, wanted_epochs
from selfsight.suggest.recipe import argument, comment, flow, prose, recipe_text
from selfsight.yaml_text import parse_overrides

GIB = 2.0**30
CPU = Machine("cpu", "cpu x86_64, 2 cores", 16 * GIB, 2, False, 100 * GIB)
GPU = Machine("cuda", "A GPU", 24 * GIB, 8, True, 100 * GIB)
PACE = Pace(100.0, 10, "backward", 0.1)
PHOTOS = ImageFacts(count=5_000, looked=2_000, shorter=375, smallest=100, largest=1_600)
CIFAR = ImageFacts(50_000, 2_000, shorter=32, classes=10, least=5_000, most=5_000, own_test=True)


def keys(images: ImageFacts, machine: Machine, place: int = 0) -> dict:
    return {choice.key: choice.value for choice in setups(images, machine)[place].choices}


@pytest.mark.parametrize(
    ("images", "machine", "base", "expected"),
    [
        (PHOTOS, CPU, "photos/simclr", {"views": {0: {"size": 128}}, "batch_size": 128}),
        (PHOTOS, GPU, "photos/simclr", {"views": {0: {"size": 224}}, "batch_size": 256}),
        (PHOTOS, GPU, "photos/simclr", {"optimizer.lr": 0.00141}),  # 1e-3 for 128
        (replace(PHOTOS, count=60_000), GPU, "photos/simclr", {"backbone.name": "resnet50"}),
        (replace(PHOTOS, shorter=100), GPU, "photos/simclr", {"views": {0: {"size": 96}}}),
        (replace(PHOTOS, count=20), CPU, "photos/simclr", {"batch_size": 8}),
        (replace(PHOTOS, count=1_437), CPU, "photos/simclr", {"batch_size": 64}),
        (replace(PHOTOS, count=2), CPU, "photos/simclr", {"batch_size": 2}),
        (replace(PHOTOS, ratio=3.0), CPU, "photos/simclr", {"evaluate.resize": "squash"}),
        (replace(PHOTOS, usual_colours=False), CPU, "photos/simclr", {"data.mean": "auto"}),
        (replace(PHOTOS, broken=3), CPU, "photos/simclr", {"data.max_bad": 0.004}),
        (CIFAR, CPU, "cifar10-small/simclr", {"data.mean": "auto", "views": {0: {"size": 32}}}),
        (CIFAR, GPU, "cifar10/simclr", {"batch_size": 256}),
        (replace(CIFAR, shorter=28, channels=1), CPU, "cifar10-small/simclr", {"data.channels": 1}),
        (replace(CIFAR, channels=12, deep=True), GPU, "cifar10/simclr", {"data.bits": 16}),
        (replace(CIFAR, shorter=8), CPU, "cifar10-small/simclr", {"views": {0: {"size": 16}}}),
    ],
)
def test_what_is_chosen(images, machine, base, expected):
    first = setups(images, machine)[0]
    assert first.base == base
    found = keys(images, machine)
    assert {key: found.get(key) for key in expected} == expected


def test_few_images_take_a_method_without_negatives():
    assert setups(replace(PHOTOS, count=256), CPU)[0].method == "SimCLR"
    assert setups(replace(PHOTOS, count=127), CPU)[0].method == "BYOL"
    assert keys(replace(PHOTOS, count=127), CPU)["method"]["name"] == "byol"


def test_less_memory_makes_smaller_batches():
    big = [keys(PHOTOS, replace(GPU, memory=m * GIB))["batch_size"] for m in (80, 12, 4, 0.5)]
    assert big == sorted(big, reverse=True)
    assert big[0] == 256
    assert big[-1] < 64


def test_images_without_colours_get_views_without_colours():
    (group,) = keys(replace(PHOTOS, channels=1), CPU)["views"]
    assert not {"saturation", "hue", "grayscale"} & {k for k, v in group.items() if v}
    assert group["size"] == 128
    (group,) = keys(replace(PHOTOS, channels=5), CPU)["views"]
    assert group["rotate90"]  # bands are seen from above


@pytest.mark.parametrize(
    ("images", "machine", "words"),
    [
        (replace(PHOTOS, count=900), CPU, "Only 900 images"),
        (PHOTOS, CPU, "5,000 images: below some 50,000"),
        (replace(CIFAR, least=100), CPU, "The largest class has 5,000 images, the smallest 100"),
        (replace(PHOTOS, repeated=200), CPU, "200 of 2,000 images are equal to others"),
        (replace(CIFAR, own_test=False, test=10), CPU, "No test split: 10 images are held out"),
        (replace(PHOTOS, smallest=9), CPU, "side of 9 pixels, less than a patch of 16"),
        (PHOTOS, replace(CPU, disk=GIB), "Only 1.0 GiB of the disk"),
        (replace(PHOTOS, broken=1, example="a.png: empty"), CPU, "such as a.png: empty"),
        (replace(CIFAR, shared=2), CPU, "2 test images are among"),
        (PHOTOS, CPU, "No labels"),
    ],
)
def test_what_is_warned_of(images, machine, words):
    setup = setups(images, machine)[0]
    found = advice.warnings(images, machine, setup, PACE)
    assert sum(words in line for line in found) == 1


def test_nothing_is_said_of_a_set_without_faults():
    images = replace(CIFAR, test=10_000)
    assert advice.warnings(images, GPU, setups(images, GPU)[0], PACE) == []


def test_packing_is_advised_where_images_are_waited_for():
    setup, slow = setups(PHOTOS, GPU)[0], replace(PACE, waiting=0.6)
    assert any("60%" in line for line in advice.warnings(PHOTOS, GPU, setup, slow))
    packed = replace(PHOTOS, decoded=True)
    assert not any("60%" in line for line in advice.warnings(packed, GPU, setup, slow))


images_facts = st.builds(
    ImageFacts,
    count=st.one_of(st.integers(2, 300), st.integers(2, 10**8)),
    looked=st.integers(1, 2_000),
    channels=st.integers(1, 32),
    deep=st.booleans(),
    shorter=st.integers(1, 10_000),
    ratio=st.floats(1, 50),
    smallest=st.integers(1, 300),
    usual_colours=st.booleans(),
    classes=st.integers(0, 1_000),
    least=st.integers(0, 1_000),
    most=st.integers(0, 10**6),
    broken=st.integers(0, 2_000),
    example=st.text(max_size=20),
    repeated=st.integers(0, 2_000),
    own_test=st.booleans(),
    decoded=st.booleans(),
)
machines = st.builds(
    Machine,
    kind=st.sampled_from(["cpu", "cuda", "mps"]),
    name=st.text(max_size=20),
    memory=st.one_of(st.floats(2**26, 2**40), st.just(math.inf)),
    cores=st.integers(1, 256),
    bf16=st.booleans(),
    disk=st.floats(0, 2**45),
)
rates = st.floats(1e-3, 1e6)
budgets = st.floats(1e-2, 1e5)


@settings(max_examples=60)
@given(images_facts, machines, rates, budgets)
def test_every_choice_is_a_valid_configuration(tmp_path_factory, images, machine, rate, minutes):
    found = setups(images, machine)
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    for setup in found:
        length = plan_length(setup, images, rate, minutes)
        choices = [*setup.choices, *length_choices(setup, images, length, rate, minutes)]
        said = advice.warnings(images, machine, setup, PACE)
        text = recipe_text("title", said, (setup.base, setup.why), choices, said)
        file.write_text(text, encoding="utf-8")
        config = compose(str(file)).config
        assert config.batch_size <= images.count
        assert config.data.channels == images.channels
        assert config.schedule.warmup_epochs <= config.epochs
        assert config.views[0].size == setup.side
        steps = config.steps(images.count // config.batch_size)
        assert steps >= 1
        if length.max_steps is not None:
            assert config.schedule.warmup_epochs * (images.count // config.batch_size) <= steps


@given(images_facts, machines, rates, budgets, st.integers(1, 10**6), st.floats(1, 100))
def test_more_images_never_get_more_epochs(images, machine, rate, minutes, more, factor):
    """With one budget and one rate; and a larger budget or rate never gets fewer."""

    def epochs(count: int, rate: float, minutes: float) -> int:
        now = replace(images, count=count)
        return plan_length(setups(now, machine)[0], now, rate, minutes).epochs

    here = epochs(images.count, rate, minutes)
    assert epochs(images.count + more, rate, minutes) <= here
    assert epochs(images.count, rate * factor, minutes) >= here
    assert epochs(images.count, rate, minutes * factor) >= here
    assert 1 <= here <= wanted_epochs(images.count)


@given(images_facts, machines, rates, budgets)
def test_the_plan_keeps_to_the_budget(images, machine, rate, minutes):
    """But for the two steps that are the least."""
    setup = setups(images, machine)[0]
    length = plan_length(setup, images, rate, minutes)
    if length.max_steps != 1:
        checks = 10_000 / 6 / rate  # of a set that is hardly seen once
        assert length.seconds <= 60 * minutes * 1.001 + 5 * checks


@settings(max_examples=40)
@given(st.recursive(st.none() | st.booleans() | st.floats(-1e9, 1e9) | st.text(), st.lists))
def test_values_are_written_so_that_yaml_reads_them(value):
    assert yaml.safe_load(f"key: {flow(value)}  # why") == {"key": value}


@settings(max_examples=40)
@given(st.sampled_from(["data.path", "data.source", "data.limit"]), st.text(min_size=1))
def test_arguments_are_read_as_they_were(key, value):
    """But for paths that look like a list or like a text in quotes, which are read as those."""
    value = value.strip(" '\"[]\0") or "x"
    (word,) = shlex.split(argument(key, value))
    (tree,) = parse_overrides([word])
    assert tree == {"data": {key.partition(".")[2]: value}}


@given(st.text())
def test_a_comment_stays_one(text):
    assert yaml.safe_load(f"# {comment(text)}\nkey: 1  # {comment(text)}\n") == {"key": 1}


def test_a_command_in_the_recipe_is_whole():
    line = "  selfsight pretrain 'two  blanks.yaml' " + "x" * 200
    assert prose([line]) == [f"# {line}"]


def test_bytes_of_a_name_that_are_no_text_can_be_written(tmp_path):
    text = comment("a\udcffb")
    (tmp_path / "x").write_text(text, encoding="utf-8")
    assert Path(tmp_path / "x").read_text(encoding="utf-8") == "a\\udcffb"
