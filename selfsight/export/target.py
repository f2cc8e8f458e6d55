"""What every library that an encoder is exported to has to say."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selfsight.export.subject import Subject


@dataclass(frozen=True)
class Target:
    """A library that an encoder is exported to.

    Attributes:
        name: as `--to` has it.
        title: as a model card names it; library: as the Hugging Face hub does.
        needs: modules that must be installed; extra: that of Selfsight that installs them.
        layout: targets of one layout write the same files, which all of them read.
        refusal: of a subject why the library cannot be that encoder; "" if it can.
        write: puts the files into a folder that exists.
        code: Python that loads them from the folder `folder` and defines `prepare`, which makes
            (C, h, w) of an image, and `features`, which makes (B, D) of a batch of those.
        own_transform: whether `prepare` resizes otherwise than Selfsight, as a library's own
            transform does; else images of all sizes are compared strictly.
        exact: Python that replaces such a `prepare` by one that resizes as Selfsight does; "": the
            library has no functions for it.
        fresh: run that code in a process of its own.
    """

    name: str
    title: str
    library: str
    needs: tuple[str, ...]
    extra: str
    layout: str
    refusal: Callable[[Subject], str]
    write: Callable[[Subject, Path], None]
    code: Callable[[Subject], str]
    own_transform: Callable[[Subject], bool] = lambda subject: False
    exact: Callable[[Subject], str] = lambda subject: ""
    fresh: bool = False
