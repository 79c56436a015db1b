"""Figures in documents: where the numbers are, and the sentences that must say what the committed results say."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_TARGET = re.compile(r"\]\([^)\s]*\)|https?://\S+")  # links: addresses, not claims
_COMMIT = re.compile(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{7,}\b")
_NUMBER = re.compile(r"(?<![\w.])\d(?:[\d.,]*\d)?")


@dataclass(frozen=True)
class Figure:
    """A sentence or table row of a document whose numbers were computed from results, as it must be written there."""

    text: str


@dataclass(frozen=True)
class Constant:
    """Text whose numbers are not computed from results, with the reason.

    `no_data`: they were measured, but the raw data is not in the repository; the document has to say so.
    """

    text: str
    reason: str
    no_data: bool = False


def figure(template: str, *values: float | str) -> Figure:
    """Fill in computed values: `figure("{:.2f} times as fast", 1.5)`."""
    return Figure(template.format(*values))


def numbers(text: str) -> list[tuple[int, int]]:
    """Begin and end of every number outside of code, link targets and commit hashes."""
    masked = text
    for pattern in (_CODE, _TARGET, _COMMIT):
        masked = pattern.sub(lambda found: " " * len(found.group()), masked)
    return [found.span() for found in _NUMBER.finditer(masked)]


def unexplained(text: str, explained: list[str]) -> list[str]:
    """The surroundings of every number that is in none of the explained parts of a document."""
    spans = [(at, at + len(part)) for part in explained for at in _places(text, part)]
    rest = [n for n in numbers(text) if not any(begin <= n[0] and n[1] <= end for begin, end in spans)]
    return [f"{text[begin:end]!r} in {text[max(0, begin - 40) : end + 20]!r}" for begin, end in rest]


def section_of(text: str, part: str) -> str:
    """The section with a part of a document, from its heading to the next."""
    at = text.index(part)
    begin = text.rfind("\n#", 0, at) + 1
    end = text.find("\n#", at)
    return text[begin : end if end >= 0 else len(text)]


def _places(text: str, part: str) -> list[int]:
    return [found.start() for found in re.finditer(re.escape(part), text)]
