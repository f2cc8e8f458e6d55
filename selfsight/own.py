"""Parts of your own: methods, encoders and sources of images whose code lies in a file of yours, in
an installed package, or in the running program.

A configuration names such a part as `FILE.py:NAME`, `module:NAME`, or by the name under which an
installed package registers it (entry points in the groups of `GROUPS`). Code of a file runs only
if the user has named the file, on the command line (`named_in`) or from Python (`given`): never
because a configuration, a recipe or an encoder file of somebody else names it.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from selfsight import blame
from selfsight.errors import UserError
from selfsight.yaml_text import parse_overrides

Kind = Literal["method", "backbone", "data"]
GROUPS: dict[Kind, str] = {
    "method": "selfsight.methods",
    "backbone": "selfsight.backbones",
    "data": "selfsight.sources",
}
KEYS: dict[Kind, str] = {
    "method": "method.name",
    "backbone": "backbone.name",
    "data": "data.source",
}
LIBRARIES = ("torchvision", "huggingface")  # data.source=torchvision:CIFAR10 is no code
_CODE = re.compile(r"(?P<where>.+\.py|[A-Za-z_]\w*(?:\.\w+)*):(?P<name>[A-Za-z_]\w*(?:\.\w+)*)")


@dataclass(frozen=True)
class Part:
    """A part that is not of the package.

    Attributes:
        name: as the configuration has it; value: a class, a function, a module or a data set.
        code: its files, as a message names them -> SHA-256.
        files: where they are.
    """

    kind: Kind
    name: str
    value: Any
    code: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


_given: ContextVar[tuple[Part, ...]] = ContextVar("given", default=())
_named: ContextVar[frozenset[str]] = ContextVar("named", default=frozenset())


@contextlib.contextmanager
def named_in(arguments: Iterable[str]) -> Iterator[None]:
    """Allow the code that command-line arguments name, as in `method.name=my_method.py:Mine`."""
    names = {name for argument in arguments for name in _names_in(argument)}
    token = _named.set(_named.get() | names)
    try:
        yield
    finally:
        _named.reset(token)


def _names_in(argument: str) -> Iterator[str]:
    """The code that method=, backbone= or data=, or keys below them, name."""
    if not re.match(r"(method|backbone|data)[.=]", argument):
        return
    try:
        layers = list(parse_overrides([argument]))
    except UserError:  # the command itself will say so
        return
    for layer in layers:
        for kind, key in KEYS.items():
            value = layer.get(kind)
            name = value.get(key.partition(".")[2]) if isinstance(value, dict) else value
            if isinstance(name, str) and is_code(name):
                yield name


def named() -> list[str]:
    """The names of code that the user has given, as arguments that allow them once more."""
    return [f"method.name={name}" for name in sorted(_named.get())]


@contextlib.contextmanager
def given(parts: Iterable[Part]) -> Iterator[None]:
    """Make objects of the running program known under their names."""
    token = _given.set((*parts, *_given.get()))
    try:
        yield
    finally:
        _given.reset(token)


def is_code(name: str) -> bool:
    """Whether a name has the form FILE.py:NAME or module:NAME.

    >>> is_code("my_method.py:Mine"), is_code("resnet18"), is_code("torchvision:CIFAR10")
    (True, False, False)
    """
    found = _CODE.fullmatch(name)
    return found is not None and found["where"] not in LIBRARIES


def find(kind: Kind, name: str) -> Part | None:
    """The part of this name; None for a name that only the package itself can know.

    Raises: UserError for code that the user has not named, or that cannot be imported.
    """
    part = next((p for p in _given.get() if (p.kind, p.name) == (kind, name)), None)
    if part is not None:
        return part
    if not is_code(name):
        return _installed(kind, name)
    key = f"{KEYS[kind]}={name}"
    if name not in _named.get():
        raise UserError(
            f"{key}: is code of your own, which runs only if you name it yourself: add {key} to "
            f"the command (from Python: the keyword {kind}=)"
        )
    where, _, inside = name.rpartition(":")
    value = module = _module(where, key)
    for word in inside.split("."):
        if not hasattr(value, word):
            raise UserError(f"{key}: '{where}' defines no '{inside}'")
        value = getattr(value, word)
    return _part(kind, name, value, module)


def registered(kind: Kind) -> list[str]:
    """The names that installed packages register."""
    return sorted({entry.name for entry in _entries(kind, tuple(sys.path))})


@functools.lru_cache(maxsize=16)
def _entries(kind: Kind, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Of the packages in these folders; reading their metadata takes milliseconds."""
    return tuple(entry_points(group=GROUPS[kind]))


def part_of(kind: Kind, value: Any) -> Part:
    """An object of the running program as a part, named after its class or function."""
    about = blame.definition(value)
    name = str(getattr(about, "__qualname__", type(about).__name__)).replace(".<locals>", "")
    where, code = _where(about), {}
    if not is_code(f"{where}:{name}"):  # a lambda
        name = kind
    with contextlib.suppress(OSError, TypeError):  # code that was typed has no source
        text = inspect.getsource(about)
        code = {f"{where}:{name}": hashlib.sha256(text.encode()).hexdigest()}
    # a module: its class says nothing of its size
    if not inspect.isclass(value) and hasattr(value, "state_dict"):
        shapes = [(key, tuple(tensor.shape)) for key, tensor in value.state_dict().items()]
        code[f"{where}:{name} tensors"] = hashlib.sha256(repr(shapes).encode()).hexdigest()
    file = blame.source_file(about)
    return Part(kind, f"{where}:{name}", value, code, () if file is None else (file,))


def _where(about: Any) -> str:
    """The script of a class or function, or its module."""
    module = getattr(about, "__module__", None) or "__main__"
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).name if module == "__main__" and file else module


def _installed(kind: Kind, name: str) -> Part | None:
    """The part that an installed package registers under this name; None if none does."""
    found = [entry for entry in _entries(kind, tuple(sys.path)) if entry.name == name]
    if not found:
        return None
    if len({entry.value for entry in found}) > 1:
        packages = " and ".join(sorted(entry.dist.name for entry in found if entry.dist))
        raise UserError(
            f"{KEYS[kind]}={name}: several packages register it ({packages}); uninstall one"
        )
    value = _loaded(kind, found[0])
    return _part(kind, name, value, sys.modules[found[0].module])


def _loaded(kind: Kind, entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:  # the package's code may raise anything
        raise UserError(
            f"{KEYS[kind]}={entry.name}: '{entry.value}' cannot be imported "
            f"({blame.words(error)}); repair or uninstall its package"
        ) from error


def _module(where: str, key: str) -> Any:
    """The module of a file, or an importable one. Raises: UserError if its code fails."""
    try:
        return _of_file(where) if where.endswith(".py") else importlib.import_module(where)
    except FileNotFoundError:
        raise UserError(f"{key}: no such file '{where}'") from None
    except UserError:
        raise
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{where}.".startswith(f"{missing}."):
            raise UserError(f"{key}: there is no module '{where}'; name its file") from None
        trace = blame.frames(error, [Path(where).expanduser().resolve()])
        raise UserError(f"{key}: its code fails: {blame.words(error)}\n{trace}") from error


def _of_file(where: str) -> Any:
    """The module of a file, which is loaded again once it has changed. As of a script, modules
    beside it can be imported."""
    path = Path(where).expanduser().resolve(strict=True)
    known = (path, hashlib.sha256(path.read_bytes()).hexdigest())
    if known in _files():
        return _files()[known]
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_{len(_files())}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{path}' is not a file of Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
        _check_imports(module, path)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)  # for what its functions import later
    _files()[known] = module
    return module


def _imported(module: Any) -> Iterator[tuple[str, Path]]:
    """(first part of its name, file) of each module that a module's names come from."""
    for item in list(vars(module).values()):
        about = item if inspect.ismodule(item) else sys.modules.get(_module_name(item))
        file = getattr(about, "__file__", None)
        if about is not None and file is not None:
            yield about.__name__.partition(".")[0], Path(file).resolve()


def _check_imports(module: Any, path: Path) -> None:
    """What a file imports and has beside it is that: a module of the same name may have been
    loaded from elsewhere before. Raises: UserError if it is another."""
    for name, file in _imported(module):
        beside = path.parent / f"{name}.py"
        if beside != path and beside.is_file() and file != beside.resolve():
            raise UserError(f"'{path}': imports '{name}', which is '{file}'; rename '{beside}'")


@functools.cache
def _files() -> dict[tuple[Path, str], Any]:
    """The files that were loaded, with the hashes of their content -> their modules."""
    return {}


@functools.cache
def _hash_of_module(path: Path) -> str:
    """SHA-256 of a file when it was seen first: the code of a module stays what it was then."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _part(kind: Kind, name: str, value: Any, module: Any) -> Part:
    """A part whose code is a module's file, with the files in its folder that it has imported."""
    file = getattr(module, "__file__", None)
    if file is None:
        return Part(kind, name, value)
    folder, files = Path(file).resolve().parent, {Path(file).resolve()}
    files |= {other for _, other in _imported(module) if other.parent == folder}
    loaded = {path: sha for (path, sha), other in _files().items() if other is module}
    code = {path.name: loaded.get(path) or _hash_of_module(path) for path in sorted(files)}
    return Part(kind, name, value, code, tuple(files))


def _module_name(value: Any) -> str:
    name = getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""
