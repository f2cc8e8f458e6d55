"""Parts of your own by their names: whose code runs, what is recorded, how mistakes are told."""

import importlib.metadata
import signal
import sys
import time
from pathlib import Path

import pytest

from selfsight import own
from selfsight.config import read_yaml
from selfsight.encoders.artifact import read_network
from selfsight.errors import UserError
from selfsight.evaluate.protocols import read_results
from selfsight.pretraining.config import compose
from selfsight.pretraining.job import pretrain
from tests import own_files
from tests.own_files import KEYS, NAMES
from tests.processes import Started


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the user's files, which no test before has imported."""
    own_files.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_method", "helper", "my_net", "my_data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my_method.py:Mine", True),
        ("folder/my method.py:Mine", True),
        ("package.module:Mine", True),
        ("package.module:Outer.Inner", True),
        ("simclr", False),
        ("torchvision:CIFAR10", False),
        ("torchvision:STL10:unlabeled", False),
        ("huggingface:mnist", False),
        ("resnet18.a1_in1k", False),
        (":Mine", False),
        ("my_method.py:", False),
    ],
)
def test_what_is_a_name_of_code(name, expected):
    assert own.is_code(name) == expected


@pytest.mark.parametrize(
    "argument",
    [
        "method.name=my.py:Mine",
        "method=my.py:Mine",
        "method={name: 'my.py:Mine', temperature: 0.1}",
        "backbone.name=my.py:Mine",
        "data.source=my.py:Mine",
    ],
)
def test_what_a_command_names_may_run(argument):
    assert own.named() == []
    with own.named_in(["pretrain", "digits/simclr", argument, "--run", "x=y:z"]):
        assert own.named() == ["method.name=my.py:Mine"]
    assert own.named() == []


def marked(folder: Path) -> Path:
    """A file of code that leaves a mark when it runs."""
    mark = folder / "it-ran"
    text = f"open({str(mark)!r}, 'w').close()\n{own_files.METHOD}"
    (folder / "my_method.py").write_text(text)
    return mark


def test_a_files_code_runs_only_if_the_user_names_it(here):
    """A YAML file of somebody else that names code is refused, and the code has not run."""
    mark = marked(here)
    (here / "theirs.yaml").write_text('base: digits/simclr\nmethod: {name: "my_method.py:Mine"}\n')
    with pytest.raises(UserError, match=r"^method.name=my_method.py:Mine: is code of your own"):
        compose("theirs.yaml")
    assert not mark.exists()
    with own.named_in(["method.name=my_method.py:Mine"]):
        assert compose("theirs.yaml").config.method.temperature == 0.2
    assert mark.exists()


def test_the_code_of_an_encoder_file_does_not_run(here, command):
    with own.named_in(NAMES):
        selfsight_pretrain(here)
    mark = here / "it-ran"
    text = (here / "my_net.py").read_text()
    (here / "my_net.py").write_text(f"open({str(mark)!r}, 'w').close()\n{text}")
    done = command("knn", "runs/a", "data.source=digits", cwd=here)
    assert done.returncode == 2
    assert "backbone.name=my_net.py:build: is code of your own" in done.stderr
    assert not mark.exists()
    names = ["backbone.name=my_net.py:build", "data.source=digits"]
    done = command("knn", "runs/a", *names, cwd=here)
    assert done.returncode == 0, done.stderr
    assert "untrained" in done.stdout
    assert mark.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_method.py:Min", "method.name=my_method.py:Min: 'my_method.py' defines no 'Min'"),
        ("none.py:Mine", "method.name=none.py:Mine: no such file 'none.py'"),
        ("no.such.module:Mine", "there is no module 'no.such.module'; name its file"),
        ("helper.py:scale", "scale (helper.py) is not a class that derives from selfsight."),
        ("my_net.py:Net", "Net (my_net.py) is not a class that derives from"),
        ("broken.py:Mine", "its code fails: ZeroDivisionError: division by zero\n"),
        ("other.py:Mine", "Config (other.py) does not derive from selfsight.methods.MethodConfig"),
    ],
)
def test_a_wrong_name_is_one_line(here, name, message):
    (here / "broken.py").write_text("x = 1\ny = x / 0\n")
    (here / "other.py").write_text(
        "import selfsight\nclass Mine(selfsight.Method):\n    class Config:\n        pass\n"
    )
    with own.named_in([f"method.name={name}"]), pytest.raises(UserError) as error:
        compose("digits/simclr", [f"method.name={name}"])
    assert message in str(error.value)
    first, *rest = str(error.value).splitlines()
    assert first.startswith(f"method.name={name}: ")
    assert all(line.startswith("  ") for line in rest)  # the traceback of the user's own code
    assert bool(rest) == (name == "broken.py:Mine")


def test_the_module_beside_a_file_is_the_one_that_it_imports(here, tmp_path_factory):
    """Not one of the same name elsewhere, even if that was found first."""
    other = tmp_path_factory.mktemp("other")
    (other / "helper.py").write_text("def scale(loss):\n    return 9 * loss\n")
    sys.path.insert(0, str(other))
    with own.named_in(NAMES):
        found = own.find("method", "my_method.py:Mine")
        assert sorted(found.code) == ["helper.py", "my_method.py"]
        assert sys.modules["helper"].scale(1) == 2
        # a second folder with a helper of its own, after the first was loaded
        (other / "my_method.py").write_text(own_files.METHOD)
    name = f"{other}/my_method.py:Mine"
    with own.named_in([f"method.name={name}"]), pytest.raises(UserError) as error:
        own.find("method", name)
    assert f"imports 'helper', which is '{here / 'helper.py'}'" in str(error.value)


def test_its_keys_are_checked(here):
    with own.named_in(NAMES):
        with pytest.raises(UserError, match=r"Unknown key 'method.temprature'. Did you mean"):
            compose("digits/simclr", [*NAMES, "method.temprature=1"])
        with pytest.raises(UserError, match=r"method.temperature=hot: .* valid number"):
            compose("digits/simclr", [*NAMES, "method.temperature=hot"])
        with pytest.raises(UserError, match=r"backbone.drop_path=0.1: only for timm's models"):
            selfsight_pretrain(here, "backbone.drop_path=0.1")


def selfsight_pretrain(folder: Path, *keys: str, run: str = "runs/a") -> None:
    pretrain(compose("digits/simclr", [*NAMES, *KEYS, *keys], run).config, quiet=True)


def new_process() -> None:
    """Forget the modules, as a new process would."""
    own._files.cache_clear()
    own._hash_of_module.cache_clear()
    sys.modules.pop("helper", None)


def test_the_files_are_recorded_and_others_refused(here):
    """The hash of the helper, which the method's file imports, is recorded as well."""
    with own.named_in(NAMES):
        selfsight_pretrain(here)
        code = read_yaml(here / "runs/a/config.yaml")["code"]
        assert sorted(code) == ["helper.py", "my_data.py", "my_method.py", "my_net.py"]
        assert code["helper.py"] == own.hashlib.sha256(own_files.HELPER.encode()).hexdigest()
        selfsight_pretrain(here)  # the same code continues
        (here / "helper.py").write_text("def scale(loss):\n    return 3 * loss\n")
        selfsight_pretrain(here)  # this process runs the code that it has loaded
        new_process()
        with pytest.raises(UserError, match=r"code.helper.py: \w+ -> \w+"):
            selfsight_pretrain(here)
        with pytest.raises(UserError, match=r"code.helper.py=\w+...: this file has changed"):
            compose("runs/a/config.yaml", [*NAMES, "run=runs/b"])


def test_a_mistake_of_the_first_step_can_be_mended(here, command):
    """Nothing was learned, so the folder may hold the mended code."""
    path = here / "my_method.py"
    good = path.read_text()
    path.write_text(good.replace("x1, x2 = batch.views", "x1, x2, x3 = batch.views"))
    arguments = ["pretrain", "digits/simclr", *NAMES, *KEYS, "--run", "runs/a"]
    done = command(*arguments, cwd=here)
    assert done.returncode == 2
    line, trace = done.stderr.split("\n", 2)[1:]
    assert line.startswith("selfsight: my_method.py:")
    assert "in forward: ValueError: not enough values to unpack (expected 3, got 2)" in line
    assert "x1, x2, x3 = batch.views" in trace
    assert "engine.py" not in trace
    path.write_text(good)
    done = command(*arguments, cwd=here)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("return loss", "forward returned a tensor (); return Output(loss, features)"),
        ("return None", "forward returned nothing; return Output(loss, features)"),
        ("return Output(loss.item(), h1)", "forward returned a float as loss; it is the mean"),
        ("return Output(loss * h1, h1)", "returned a tensor (50, 8) as loss"),
        ("return Output(loss.detach(), h1)", "returned a tensor () as loss; it is the mean over"),
        ("return Output(loss, z1)", "a tensor (50, 16) as features; they are the encoder's"),
        ("return Output(loss, None)", "forward returned nothing as features"),
    ],
)
def test_what_forward_must_return(here, wrong, message):
    head, _, _ = own_files.METHOD.rpartition("        return")
    (here / "my_method.py").write_text(
        f"{head}        loss = nt_xent(z1, z2, 0.1)\n        {wrong}\n".replace(
            "import selfsight\n", "import selfsight\nfrom selfsight import Output\n"
        )
    )
    with own.named_in(NAMES), pytest.raises(UserError) as error:
        selfsight_pretrain(here)
    assert str(error.value).startswith("Mine (my_method.py): forward returned ")
    assert message in str(error.value)


def encoder_bytes(run: Path, name: str = "encoder.safetensors") -> dict[str, bytes]:
    tensors = read_network(run / name).tensors
    return {key: value.numpy().tobytes() for key, value in tensors.items()}


def test_killed_and_continued_it_is_the_same_run(here):
    """Encoder, method and images are the user's; the encoder's initial weights are kept."""
    keys = ["epochs=12", "checkpoint.every_steps=1"]
    process = Started("pretrain", "digits/simclr", *NAMES, *KEYS, *keys, "--run=runs/a", cwd=here)
    while not list(here.glob("runs/a/checkpoints/step-*.pt")):
        assert process.poll() is None, process.wait().stderr
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait().returncode != 0
    with own.named_in(NAMES):
        selfsight_pretrain(here, *keys)
        selfsight_pretrain(here, *keys, run="runs/whole")
    assert encoder_bytes(here / "runs/a") == encoder_bytes(here / "runs/whole")


def test_evaluated_it_is_compared_with_its_own_first_weights(here, command):
    with own.named_in(NAMES):
        selfsight_pretrain(here)
    first = encoder_bytes(here / "runs/a", "initial.safetensors")
    assert encoder_bytes(here / "runs/a") != first
    done = command("knn", "runs/a", *NAMES[1:], "--run", "results", cwd=here)
    assert done.returncode == 0, done.stderr
    records = {record["evaluated"]: record for record in read_results(here / "results")}
    untrained = read_network(here / "runs/a/initial.safetensors")
    assert records["untrained"]["weights_sha256"] == untrained.weights_sha256()
    assert records["encoder"]["data"]["source"] == "my_data.py:Photos"


# Installed packages -------------------------------------------------------------------------------


class Distribution:
    def __init__(self, name: str) -> None:
        self.name = name


def entry(kind: str, name: str, value: str) -> importlib.metadata.EntryPoint:
    return importlib.metadata.EntryPoint(name, value, own.GROUPS[kind])


@pytest.fixture
def installed(here, monkeypatch):
    """The user's files as modules of an installed package."""
    monkeypatch.syspath_prepend(str(here))
    entries = [
        entry("method", "mine", "my_method:Mine"),
        entry("backbone", "small_net", "my_net:build"),
        entry("data", "photos", "my_data:Photos"),
        entry("method", "gone", "no_such_module:Mine"),
    ]
    monkeypatch.setattr(own, "entry_points", lambda group: [e for e in entries if e.group == group])
    own._entries.cache_clear()
    yield entries
    own._entries.cache_clear()


def test_a_package_registers_parts(installed):
    """They may be named in files: who installs a package has chosen its code."""
    Path("r.yaml").write_text(
        "base: digits/simclr\nmethod: {name: mine}\nbackbone: {name: small_net}\n"
        "data: {source: photos}\n"
    )
    found = compose("r.yaml", [*KEYS])
    assert found.config.method.temperature == 0.2
    assert sorted(found.config.code) == ["helper.py", "my_data.py", "my_method.py", "my_net.py"]
    with pytest.raises(UserError, match=r"method.name=mined: no such method. Did you mean 'mine'"):
        compose("r.yaml", ["method.name=mined"])
    with pytest.raises(UserError, match=r"'no_such_module:Mine' cannot be imported"):
        compose("r.yaml", ["method.name=gone"])


def test_one_name_of_two_packages_is_refused(installed):
    installed.append(entry("method", "mine", "other:Mine"))
    own._entries.cache_clear()
    with pytest.raises(UserError, match=r"method.name=mine: several packages register it"):
        compose("digits/simclr", ["method.name=mine"])
