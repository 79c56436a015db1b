#!/usr/bin/env python3
"""Learn the synthetic models' word pieces and write src/turboprefill/synth/pieces.txt.

Byte-pair merges over the demo's text and a list of frequent English words. Needs nothing but Python; run it only
to change the vocabulary: all synthetic models change with it.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src/turboprefill"
N_PIECES = 1694  # fills a vocabulary of 2,048

FREQUENT = """
the of and to in a is that it was for on with he as be at by his had not are but from or have an they which one you
were her all she there would their we him been has when who will more no if out so said what up its about into than
them can only other new some could time these two may then do first any my now such like our over man me even most
made after also did many before must through back years where much your way well down should because each just those
people how too little state good very make world still own see men work long get here between both life being under
never day same another know while last might us great old year off come since against go came right used take three
states himself few house use during without again place around however home small found thought went say part once
general high upon school every does got united number course hand left war until always away something fact though
water less public put thing almost took enough far head yet government system better set told nothing night end why
called eyes find going look asked later knew point next program city business give group toward young days let room
word words side social given present several order national second possible rather per face among form important often
things looked early white case john become large big need four within felt along children saw best church ever least
power development light thing seemed family interest want members mind country area others done turned although open
god service certain kind problem begin different door thus help sense means whole matter read write file user name
line value list data code test key page text call type class function return true false print import index error
value server model token layer device memory cache batch queue thread start stop wait send copy result table string
morning evening letter question answer street mother father sister brother river mountain money paper music garden
summer winter spring autumn window bread coffee horse ship train road village market doctor teacher student child
""".split()  # noqa: SIM905 (a quoted list of hundreds of words is unreadable)


def words() -> Counter[tuple[str, ...]]:
    text = (PACKAGE / "demo/prompt.txt").read_text(encoding="utf-8")
    counts = Counter(re.findall(r" ?[A-Za-z]+", text))
    counts.update({f" {word}": 3 for word in FREQUENT})
    counts.update({f" {word.capitalize()}": 1 for word in FREQUENT})
    return Counter({tuple(word.replace(" ", "_")): n for word, n in counts.items()})


def merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)


def main() -> None:
    counts = words()
    pieces: list[str] = []
    while len(pieces) < N_PIECES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in counts.items():
            for pair in pairwise(word):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        pieces.append("".join(best))
        counts = Counter({merge(word, best): n for word, n in counts.items()})
    (PACKAGE / "synth/pieces.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
