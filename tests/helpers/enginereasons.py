"""The texts that the engine can give as the reason for the standard path, read from its sources."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["reasons_in"]

_ENTRY = "llama_turboprefill_reason"  # what users call
_STRING = r'"(?:[^"\\]|\\.)*"'
_PIECE = re.compile(rf"(?:{_STRING}|'(?:[^'\\]|\\.)'|[^;{{}}\"'])+")  # up to the next ; { or }
_FUNCTION = re.compile(r"^[^\s#/}][^\n;{]*?\b(\w+)\([^;{}]*\)[^;{}()]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_LAMBDA = re.compile(r"\[[^\[\]]*\]\s*\([^)]*\)\s*\{")
_ASSIGNED = re.compile(r"\b(?:why\w*|reason)\s*=(?!=)(.*)", re.DOTALL)
_RETURNED = re.compile(r"\breturn\b(.*)", re.DOTALL)


def reasons_in(sources: Iterable[str]) -> set[str]:
    """Every literal that can become a reason.

    These are the literals in what is assigned to variables named `why...` or `reason`, in what the C API's function
    returns, and in what functions return that are called there: wherever in the expression the literal stands.
    """
    texts = [re.sub(rf"({_STRING})|//[^\n]*", lambda found: found.group(1) or "", text) for text in sources]
    functions: dict[str, list[str]] = {}
    for text in texts:
        for name, body in _FUNCTION.findall(text):
            functions.setdefault(name, []).append(body)
    todo = [part for text in texts for part in _parts(text, _ASSIGNED)]
    todo += _returned(functions.pop(_ENTRY, []))
    found: set[str] = set()
    while todo:
        part = todo.pop()
        found |= {literal[1:-1] for literal in re.findall(_STRING, part)}
        for name in re.findall(r"\b(\w+)\(", re.sub(_STRING, "", part)):
            todo += _returned(functions.pop(name, []))
    return found - {""}


def _returned(bodies: Iterable[str]) -> list[str]:
    return [part for body in bodies for part in _parts(_without_lambdas(body), _RETURNED)]


def _parts(text: str, pattern: re.Pattern[str]) -> list[str]:
    """What the pattern finds in each statement of a text."""
    found = map(pattern.search, _PIECE.findall(text))
    return [match.group(1) for match in found if match]


def _without_lambdas(body: str) -> str:
    while begin := _LAMBDA.search(body):
        end, depth = begin.end(), 1
        while depth:
            depth += {"{": 1, "}": -1}.get(body[end], 0)
            end += 1
        body = body[: begin.start()] + body[end:]
    return body
