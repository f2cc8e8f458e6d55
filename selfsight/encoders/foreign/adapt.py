"""Assign the tensors of a checkpoint to those of an encoder, one by one, as a format says."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from selfsight.encoders.foreign.format import TRAINING, Format, Patterns
from selfsight.encoders.foreign.formats import FORMATS
from selfsight.encoders.foreign.read import tensors

COUNTER = "num_batches_tracked"  # steps of a batch norm, which eval mode does not read


@dataclass
class Fit:
    """A file read as one format, for one encoder.

    Attributes:
        format: name in FORMATS.
        entry: of the file, where the state dict is; "": the file itself; None: nowhere.
        keys: name in the encoder -> key in the file.
        used: name in the encoder -> its tensor, of equal shape.
        left_out: part of the training -> number of tensors.
        missing: names in the encoder that the file lacks.
        shapes: name in the encoder -> its tensor in the file, of another shape.
        resampled: what was made to fit all the same, as part of a sentence.
        unknown: keys of the file that the format does not explain.
        not_finite: keys of the file with NaN or infinity.
        periods: of rotary positions, where the file holds them.
    """

    format: str
    entry: str | None = None
    keys: dict[str, str] = field(default_factory=dict)
    used: dict[str, Tensor] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    shapes: dict[str, Tensor] = field(default_factory=dict)
    resampled: str = ""
    unknown: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    periods: Tensor | None = None

    @property
    def problems(self) -> int:
        """0 if every tensor of the encoder is found and every one of the file explained."""
        wrong = (self.missing, self.shapes, self.unknown, self.not_finite)
        return sum(len(names) for names in wrong)


def recognised(file: Mapping[Any, Any]) -> list[str]:
    """The formats whose marks are all among the file's names."""
    found = []
    for name, format in FORMATS.items():
        names = list(_bare(_state(file, format)[1]).values())
        if names and all(any(re.fullmatch(m, n) for n in names) for m in format.marks):
            found.append(name)
    return found


def adapt(file: Mapping[Any, Any], name: str, own: dict[str, Tensor]) -> Fit:
    """Read the file as that format, for an encoder with that state dict."""
    format, result = FORMATS[name], Fit(name)
    result.entry, state = _state(file, format)
    bare_names = _bare(state)
    keys = {bare: key for key, bare in bare_names.items()}
    converted = format.convert({bare: _single(state[key]) for key, bare in bare_names.items()})
    result.unknown += [str(key) for key, bare in bare_names.items() if keys[bare] != key]
    for bare, value in converted.items():
        _place(result, format, own, keys.get(bare, bare), bare, value)
        if format.periods and re.fullmatch(format.periods, bare):
            result.periods = value
    for key, value in file.items():
        count = sum(1 for _ in tensors(value))
        if not count or key == result.entry or (result.entry == "" and key in state):
            continue
        part = _part(format.entries + TRAINING, str(key))
        if part:
            result.left_out[part] += count
        else:
            result.unknown.append(str(key))
    counters = {key for key in own if key.endswith(COUNTER)}
    without = format.lacks_counters and not counters & result.keys.keys()
    result.missing = [k for k in own if k not in result.keys and not (without and k in counters)]
    return result


def _state(file: Mapping[Any, Any], format: Format) -> tuple[str | None, Mapping[Any, Any]]:
    """The entry of the file that holds the state dict, and the state dict."""
    for entry in format.where:
        if entry == "":
            state = {key: value for key, value in file.items() if isinstance(value, Tensor)}
        else:
            state = file.get(entry)
        if isinstance(state, Mapping) and any(isinstance(v, Tensor) for v in state.values()):
            return entry, state
    return None, {}


def _bare(state: Mapping[Any, Any]) -> dict[Any, str]:
    """Key -> name without torch.compile's `_orig_mod.`, and DDP's `module.` if all have it."""
    names = {key: re.sub(r"(^|\.)_orig_mod\.", r"\1", str(key)) for key in state}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    return names


def _single(value: Any) -> Any:
    """Half precision as single, which every format computes with."""
    half = isinstance(value, Tensor) and value.is_floating_point() and value.itemsize < 4
    return value.float() if half else value


def _place(
    result: Fit, format: Format, own: dict[str, Tensor], key: Any, bare: str, value: Any
) -> None:
    """Assign one tensor to the encoder or to a part left out, or record why neither fits."""
    if not isinstance(value, Tensor):
        if next(tensors(value), None) is not None:
            result.unknown.append(str(key))
        return
    part = _part(format.parts, bare)
    if part:
        result.left_out[part] += 1
        return
    name = _rename(format, bare)
    if name not in own or name in result.keys:
        known = name and name not in own and format.zeros
        if known and re.fullmatch(format.zeros, name) and not value.any():
            result.left_out["biases that are 0"] += 1
        else:
            result.unknown.append(str(key))
        return
    result.keys[name] = str(key)
    if value.shape != own[name].shape:
        result.shapes[name] = value
    elif value.dtype.is_floating_point != own[name].dtype.is_floating_point:
        result.unknown.append(f"{key} ({value.dtype})")
    elif value.dtype.is_floating_point and not value.isfinite().all():
        result.not_finite.append(str(key))
    else:
        result.used[name] = value


def _rename(format: Format, bare: str) -> str | None:
    """timm's name, or None without the prefix."""
    prefix = re.match(format.prefix, bare)
    if not prefix:
        return None
    name = bare[prefix.end() :]
    for pattern, timms in format.renames:
        name = re.sub(f"^(?:{pattern})", timms, name)
    return name


def _part(parts: Patterns, name: str) -> str | None:
    return next((part for part, pattern in parts if re.fullmatch(pattern, name)), None)
