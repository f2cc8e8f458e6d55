"""The paper of a method, as its docstring names it."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """The paper of a method."""

    title: str
    year: int
    arxiv: str


def paper_in(docstring: str) -> Paper | None:
    """The paper that a docstring begins with: title (authors, venue, arXiv number); None for one
    without a number.

    >>> paper_in("A Simple Framework (Chen et al., ICML 2020, 2002.05709), eq. 1.").year
    2020
    """
    text = " ".join(docstring.split())
    title, number = text.partition(" (")[0], re.search(r"\b(\d{2})\d{2}\.\d{4,5}\b", text)
    return Paper(title, 2000 + int(number[1]), number[0]) if number else None
