"""What an export computes, loaded by its library without Selfsight's code."""

import dataclasses
import logging
import shutil
import sys

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

import selfsight
from selfsight.encoders.artifact import read_network, save_encoder
from selfsight.encoders.encoder import load_encoder
from selfsight.errors import UserError
from selfsight.evaluate.protocols.target import open_target
from selfsight.export import export as exporting
from selfsight.export import geometry, pictures, to_timm
from selfsight.export.export import export
from selfsight.export.subject import open_subject
from selfsight.export.verify import verify
from selfsight.pretraining.build import build_method
from selfsight.pretraining.config import compose
from tests.conftest import ROOT
from tests.export.made import ATTO, MEAN, RESNET, STD, TINY, VIT, encoder

MODELS = {"resnet18": RESNET, "vit": VIT, "convnext": ATTO}
SIZE = 32


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each model."""
    place = tmp_path_factory.mktemp("runs")
    return {name: encoder(place / name, model, SIZE) for name, model in MODELS.items()}


@pytest.fixture
def quick_torch(monkeypatch):
    """Verified in this process, which spares another's import of torch."""
    quick = dataclasses.replace(exporting.TARGETS["torch"], fresh=False)
    monkeypatch.setitem(exporting.TARGETS, "torch", quick)


def photos(*sizes: tuple[int, int]) -> list[Image.Image]:
    generator = np.random.default_rng(3)
    found = []
    for height, width in sizes:
        coarse = Image.fromarray(generator.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        found.append(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return found


# How users load an export, with the library alone -------------------------------------------------


def of_timm(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def of_transformers(folder):
    model = AutoModel.from_pretrained(folder).eval()
    return lambda x: model(x).pooler_output


def of_torchvision(folder):
    if "vit" in str(folder):
        sizes = {"image_size": SIZE, "patch_size": 16, "num_layers": 2, "num_heads": 3}
        model = torchvision.models.VisionTransformer(hidden_dim=192, mlp_dim=768, **sizes)
        model.heads = torch.nn.Identity()
    else:
        model = torchvision.models.resnet18(weights=None)
        model.fc = torch.nn.Identity()
    model.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    return model.eval()


def of_onnx(folder):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert [node.name for node in session.get_inputs()] == ["pixel_values"]
    return lambda x: torch.from_numpy(session.run(["features"], {"pixel_values": x.numpy()})[0])


def of_torch(folder):
    return torch.export.load(folder / "model.pt2").module()


LOADERS = {
    "timm": of_timm,
    "transformers": of_transformers,
    "torchvision": of_torchvision,
    "onnx": of_onnx,
    "torch": of_torch,
}


@pytest.mark.parametrize("to", LOADERS)
@pytest.mark.parametrize("name", MODELS)
def test_features_are_the_encoders(runs, tmp_path, request, name, to):
    if name != "vit":  # the other process is started for one of them
        request.getfixturevalue("quick_torch")
    out = tmp_path / f"{name}-{to}"
    if (name, to) == ("convnext", "torchvision"):
        with pytest.raises(UserError, match="convnext_atto is neither; export to onnx or torch"):
            export(runs[name], to, out)
        assert list(tmp_path.iterdir()) == []
        return
    found = export(runs[name], to, out)
    assert found.files.keys() == {path.name for path in out.iterdir()}
    ours, theirs = load_encoder(runs[name]), LOADERS[to](out)
    for count in (1, 2, 16):
        x = torch.randn(count, 3, SIZE, SIZE)
        with torch.no_grad():
            torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-5)
    for numbers in found.differences.values():
        assert max(numbers.network, numbers.exact_size) < 1e-4
        assert numbers.other_sizes > 0 or not to.startswith("t")
    for path in out.iterdir():  # no path of this machine
        content = path.read_bytes()
        for folder in (str(tmp_path), str(ROOT), sys.prefix, "site-packages"):
            assert folder.encode() not in content, path


@pytest.mark.parametrize("images", [1, 2, 16])
def test_features_that_are_no_number_are_found_in_every_batch(runs, tmp_path, images, monkeypatch):
    """Also where no image has the size that needs no resizing."""
    monkeypatch.setattr(geometry, "exact_sizes", lambda subject: [])
    monkeypatch.setattr(
        pictures, "draw", lambda sizes, *_: photos(*[(SIZE, SIZE)] * 2 * len(sizes))
    )
    subject = open_subject(runs["vit"])
    broken = f"""
import torch
from torchvision.transforms import v2
from selfsight.encoders.encoder import load_encoder

encoder = load_encoder(folder)
prepare = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def features(pixels):
    return encoder(pixels) * (torch.nan if len(pixels) == {images} else 1)
"""
    target = dataclasses.replace(
        exporting.TARGETS["timm"], code=lambda subject: broken, exact=lambda subject: ""
    )
    with pytest.raises(UserError, match=r"differ by nan .*\(network\)"):
        verify(subject, target, runs["vit"])


def test_the_transforms_of_timm_and_transformers_are_right(runs, tmp_path):
    """For images of the size that they need not resize."""
    export(runs["vit"], "timm", tmp_path / "out")
    expected = load_encoder(runs["vit"]).embed(images := photos(*[(SIZE, SIZE)] * 4))
    model = of_timm(tmp_path / "out")
    about = timm.data.resolve_data_config({}, model=model)
    assert (about["mean"], about["std"], about["crop_pct"]) == (list(MEAN), list(STD), 1.0)
    transform = timm.data.create_transform(**about)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    x = processor(images)["pixel_values"]
    assert torch.equal(x, torch.stack([transform(image) for image in images]))
    # on the hub, transformers looks into preprocessor_config.json first
    shutil.copytree(tmp_path / "out", tmp_path / "hub")
    name = "preprocessor_config.json"
    hub = AutoImageProcessor.from_pretrained(tmp_path / "hub", image_processor_filename=name)
    assert torch.equal(hub(images)["pixel_values"], x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_may_be_put_on_it(tmp_path):
    run = encoder(tmp_path / "run", TINY)
    export(run, "timm", tmp_path / "out")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=7)
    assert model(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, 7)
    own = load_encoder(run).backbone
    assert torch.equal(model.layer4[0].conv2.weight, own.layer4[0].conv2.weight)


@pytest.mark.parametrize(("pool", "resize"), [("token", "crop"), ("avg", "squash")])
def test_selfsight_reads_the_folder_again(tmp_path, monkeypatch, pool, resize):
    """`selfsight knn FOLDER` measures equal features, without keys; a run starts from it."""
    monkeypatch.chdir(tmp_path)
    vit = {**VIT, "options": {"depth": 2, "global_pool": pool, "reg_tokens": 2}}
    run = encoder(tmp_path / "run", vit, 48, resize=resize)
    export(run, "timm", tmp_path / "out")
    x = torch.randn(3, 3, 48, 48)
    target = open_target("out", [], None)
    assert target.encoder.resize == resize
    assert (target.encoder.image_size, target.base["data"]["mean"]) == (48, list(MEAN))
    with torch.no_grad():
        expected = load_encoder(run)(x)
        assert torch.equal(target.encoder.build().eval()(x), expected)
        keys = ["weights=timm:local-dir:out", "views=simclr-small", "views.0.size=48"]
        keys += [f"backbone.options.global_pool={pool}"]
        begun = build_method(compose("photos/simclr", keys, "runs/x").config).backbone.eval()
        assert torch.equal(begun(x), expected)


@pytest.mark.parametrize(
    ("more", "channels", "bits"),
    [({}, 1, 8), ({"range": (100, 4000)}, 2, 16), ({}, 5, 8), ({"size": (32, 80)}, 3, 8)],
)
def test_other_channels_bits_and_shapes(tmp_path, more, channels, bits):
    run = encoder(tmp_path / "run", TINY, channels=channels, bits=bits, **more)
    found = export(run, "timm", tmp_path / "out").differences["timm"]
    pil = channels in (1, 3) and bits == 8
    assert (found.exact_code is not None) == pil
    assert max(found.network, found.exact_size, found.exact_code or found.other_sizes) < 1e-4
    assert "do this" not in (tmp_path / "out" / "README.md").read_text()


REFUSED = [
    ("timm", {**TINY, "small_images": True}, {}, "builds the small stem of backbone.small_images"),
    ("transformers", TINY, {"head": 8}, "those of the head that SimCLR v2 keeps"),
    ("timm", {**VIT, "norm_eps": 1e-3}, {}, "no argument of timm sets backbone.norm_eps=0.001"),
    ("timm", {**TINY, "options": {"in_chans": 1}}, {}, "takes the mean of three channels"),
    ("torchvision", TINY, {}, "resnet18 has no options like channels=[8, 8, 16, 16], layers="),
    ("torchvision", RESNET, {"channels": 4}, "take RGB images, and the encoder 4 channels"),
    ("torchvision", {**VIT, "options": {"depth": 1, "global_pool": "avg"}}, {}, "global_pool=avg"),
    (
        "torchvision",
        {**VIT, "options": {"depth": 1, "reg_tokens": 1}},
        {},
        "no part like reg_token",
    ),
    ("torchvision", {**VIT, "norm_eps": 1e-5}, {}, "no argument of torchvision sets"),
]


@pytest.mark.parametrize(("to", "backbone", "more", "reason"), REFUSED)
def test_what_a_library_cannot_be_is_refused(tmp_path, to, backbone, more, reason):
    run = encoder(tmp_path / "run", backbone, **more)
    with pytest.raises(UserError) as error:
        export(run, to, tmp_path / "out")
    assert reason in str(error.value)
    assert str(error.value).endswith("export to onnx or torch, which take any encoder")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("backbone", "more"),
    [({**TINY, "small_images": True}, {"head": 8}), ({**TINY, "options": {"in_chans": 1}}, {})],
)
def test_torch_takes_what_the_others_refuse(tmp_path, quick_torch, backbone, more):
    run = encoder(tmp_path / "run", backbone, **more)
    export(run, "torch", tmp_path / "out")
    x = torch.randn(5, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = load_encoder(run)(x)
    torch.testing.assert_close(of_torch(tmp_path / "out")(x), expected, rtol=1e-4, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("projection of 8 that SimCLR v2 keeps" in card) == bool(more)


def test_an_encoder_of_your_own_code(tmp_path, monkeypatch, command):
    """Its folder is not named in what is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef build(width=6):\n"
        "    layers = nn.Conv2d(3, width, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    return nn.Sequential(*layers)\n"
    )
    name = f"backbone.name={tmp_path / 'net.py'}:build"
    done = command(
        *("pretrain", "digits/simclr", name, "max_steps=2", "device=cpu", "--run", "run"),
        *("method.hidden_dim=16", "method.output_dim=8", "evaluate.every_epochs=0"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    done = command("export", "run", "--to", "onnx", "-o", "out", cwd=tmp_path)
    assert (done.returncode, "runs only if you name it" in done.stderr) == (2, True)
    done = command("export", "run", name, "--to", "timm", "-o", "out", cwd=tmp_path)
    assert "code of your own, which timm does not have" in done.stderr
    done = command("export", "run", name, "--to", "onnx", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Wrote out" in done.stdout
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    assert "# net.py:build, pretrained by simclr" in (tmp_path / "out" / "README.md").read_text()


# What must not be exported ------------------------------------------------------------------------


def spoiled(subject, folder):
    """As timm's file, with one weight that differs a little."""
    to_timm.write(subject, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["layer4.0.bn1.bias"] += 0.01
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def other_colours(subject, folder):
    to_timm.write(subject, folder)
    path = folder / "config.json"
    path.write_text(path.read_text().replace("0.31", "0.32"))


def unreadable(subject, folder):
    to_timm.write(subject, folder)
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (spoiled, r"features differ by .* \(network\), and at most 1e-04 is allowed; nothing"),
        (other_colours, r"\(whole chain at the exact size\)"),
        (unreadable, "timm cannot load the export"),
    ],
)
def test_an_export_with_other_features_is_not_written(tmp_path, monkeypatch, write, reason):
    run = encoder(tmp_path / "run", TINY)
    broken = dataclasses.replace(to_timm.TIMM, write=write)
    monkeypatch.setitem(exporting.TARGETS, "timm", broken)
    with pytest.raises(UserError, match=reason):
        export(run, "timm", tmp_path / "out", push=None)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_diverged_encoder_is_not_exported(tmp_path):
    run = encoder(tmp_path / "run", TINY)
    network = load_encoder(run)
    with torch.no_grad():
        network.backbone.conv1.weight.fill_(float("nan"))
    about = {k: v for k, v in network.description.items() if k != "weights_sha256"}
    selfsight.encoders.artifact.save_encoder(run, network.backbone, about)
    with pytest.raises(UserError, match="features are not finite"):
        export(run, "timm", tmp_path / "out")


SAID = [
    ({"data": {"range": ["a", "b"]}}, r"data.range=\['a', 'b'\]: give"),
    ({"data": {"bits": "8"}}, "data.bits=8: input should be 8 or 16"),
    ({"method": {}}, "Missing key 'method.name'"),
    ({"pretrained_on": {"images": "many"}}, "pretrained_on.images=many"),
]


@pytest.mark.parametrize(("said", "reason"), SAID)
def test_a_description_that_no_card_can_say_is_refused(tmp_path, said, reason):
    """It may be a stranger's; the card and its code are made of it."""
    run = encoder(tmp_path / "run", TINY)
    network = read_network(run / "encoder.safetensors")
    about = {k: v for k, v in network.description.items() if k != "weights_sha256"}
    save_encoder(run, network.build(), {**about, **said})
    with pytest.raises(UserError, match=reason):
        export(run, "timm", tmp_path / "out")


def test_the_exporter_of_onnx_prints_nothing(tmp_path, capfd, caplog):
    """It warns of parts of attention that it leaves as they are."""
    vit = {"embed_dim": 24, "depth": 1, "num_heads": 2, "global_pool": "token"}
    run = encoder(tmp_path / "run", {"name": "vit_small_patch16_dinov3", "options": vit})
    capfd.readouterr()
    export(run, "onnx", tmp_path / "out")
    warned = [one.message for one in caplog.records if one.levelno >= logging.WARNING]
    assert (warned, *capfd.readouterr()) == ([], "", "")


def test_bad_input(tmp_path, monkeypatch, command):
    run = encoder(tmp_path / "run", TINY)
    (tmp_path / "begun").mkdir()
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "file").write_text("mine")

    def said(*arguments):
        done = command("export", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert not (tmp_path / "out").exists()
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "--to tim: no such target. Did you mean 'timm'?" in said(
        "run", "--to", "tim", "-o", "out"
    )
    assert "no such run folder" in said("nowhere", "--to", "timm", "-o", "out")
    assert "the run is not finished" in said("begun", "--to", "timm", "-o", "out")
    assert "no encoder that Selfsight wrote" in said("other.pth", "--to", "timm", "-o", "out")
    assert "'file': is a file; name a folder" in said("run", "--to", "timm", "-o", "file")
    assert "'.': is the folder of this process" in said("run", "--to", "timm", "-o", ".")
    assert "'run': holds other files than an export" in said("run", "--to", "timm", "-o", "run")
    odd = said("run", "--to", "timm", "-o", "out", "--images", "big")
    assert "--images big: is neither small nor photographs" in odd
    assert "leave out backbone.* and format" in said(
        "run", "backbone.x=1", "--to", "onnx", "-o", "out"
    )
    assert "only with --push" in said("run", "--to", "timm", "-o", "out", "--dry-run")
    monkeypatch.setattr(exporting, "_installed", lambda module: module != "onnxruntime")
    line = said("run", "--to", "onnx", "-o", "out")
    assert "--to onnx: needs onnxruntime: pip install 'selfsight[onnx]'" in line
    assert run.is_dir()
    assert (tmp_path / "file").read_text() == "mine"
