"""What must hold, one function each; they raise AssertionError.

Most ask the same of a server with TurboPrefill off and on, one request after the other, and compare every answer.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.error
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from llama_server import LlamaServer, digest, prompt, request
from llamaserver.lab import Lab, answer, n_cached, pipelined

Check = Callable[[Lab], str]

_LENGTHS = (200, 37, 333, 128, 64, 200, 511, 90)  # of prompts that are sent at once


def _both(lab: Lab, preset: str, ask: Callable[[LlamaServer], list[str]], *options: object, **more: Any) -> int:
    """Ask two servers the same; how many ubatches were pipelined."""
    with lab.server(preset, *options, on=False, **more) as off:
        expected = ask(off)
    with lab.server(preset, *options, on=True, **more) as on:
        found = ask(on)
        n = pipelined(on)
    assert found == expected, f"{preset}: answers {found}, with TURBOPREFILL=0 {expected}"
    assert n > 0, f"{preset}: nothing was pipelined, see {on.log}"
    return n


def prompts(lab: Lab) -> str:
    """New prompts, longer ones that begin the same, and ones that turn off in the middle: checkpoints are restored."""

    def ask(running: LlamaServer) -> list[str]:
        begin = prompt(700, 1)
        texts = [
            begin,
            [*begin, *prompt(60, 2)],
            [*begin[:500], *prompt(200, 3)],
            [*begin[:90], *prompt(900, 4)],
            begin,
        ]
        replies = [answer(running, text, cache_prompt=True, id_slot=0) for text in texts]
        return [f"{digest(reply)} {n_cached(reply)}" for reply in replies]

    presets = ("tiny", "moe-tiny", "gptoss-tiny", "gemma3-tiny", "granite-hybrid-tiny", "mtp-tiny")
    return f"{sum(_both(lab, preset, ask) for preset in presets)} ubatches pipelined, {len(presets)} models"


def cache_reuse(lab: Lab) -> str:
    """`--cache-reuse`: a piece of the old prompt is shifted to its new place."""

    def ask(running: LlamaServer) -> list[str]:
        first, second, third = prompt(200, 1), prompt(300, 2), prompt(400, 3)
        replies = [
            answer(running, text, cache_prompt=True, id_slot=0)
            for text in ([*first, *second, *third], [*first, *third, *prompt(300, 4)])
        ]
        assert n_cached(replies[1]) >= 590, f"{n_cached(replies[1])} tokens were reused"
        return [digest(reply) for reply in replies]

    return f"{_both(lab, 'tiny', ask, '--cache-reuse', 32)} ubatches pipelined"


def context_shift(lab: Lab) -> str:
    """`--context-shift`: a slot that is full drops its oldest tokens, in mid-prompt of another."""

    def ask(running: LlamaServer) -> list[str]:
        reply = answer(running, prompt(400, 1), n_predict=300)
        assert reply["truncated"], "the context was not shifted"
        return [digest(reply), digest(answer(running, prompt(450, 2)))]

    return f"{_both(lab, 'tiny', ask, '--context-shift', slots=1, context=512)} ubatches pipelined"


def slot_files(lab: Lab) -> str:
    """A slot is saved to a file, erased, and restored from it."""

    def ask(running: LlamaServer) -> list[str]:
        text = prompt(600, 1)
        found = [digest(answer(running, text, cache_prompt=True, id_slot=0))]
        saved = running.call("/slots/0?action=save", {"filename": "slot.bin"})
        running.call("/slots/0?action=erase", {})
        found.append(digest(answer(running, prompt(300, 2), cache_prompt=True, id_slot=0)))
        restored = running.call("/slots/0?action=restore", {"filename": "slot.bin"})
        reply = answer(running, [*text, *prompt(200, 3)], cache_prompt=True, id_slot=0)
        assert n_cached(reply) >= 600, f"{n_cached(reply)} tokens were cached"
        return [*found, digest(reply), str(saved["n_saved"]), str(saved["n_written"]), str(restored["n_restored"])]

    return f"{_both(lab, 'tiny', ask, '--slot-save-path', lab.folder)} ubatches pipelined"


def prompt_cache(lab: Lab) -> str:
    """The RAM cache of prompts: one slot, two users who take turns."""

    def ask(running: LlamaServer) -> list[str]:
        texts = [prompt(600, 1), prompt(500, 2)]
        replies = [answer(running, text, cache_prompt=True) for text in (*texts, *texts, [*texts[0], *prompt(99, 3)])]
        assert n_cached(replies[2]) > 500, f"{n_cached(replies[2])} tokens came from the cache"
        return [f"{digest(reply)} {n_cached(reply)}" for reply in replies]

    names = ("tiny", "gptoss-tiny", "granite-hybrid-tiny")
    return f"{sum(_both(lab, name, ask, '-cram', 256, slots=1) for name in names)} ubatches pipelined"


def drafts(lab: Lab) -> str:
    """Multi-token prediction: the same text, the same number of accepted drafts."""

    def ask(running: LlamaServer) -> list[str]:
        replies = [answer(running, prompt(n, n), n_predict=24) for n in (900, 130, 700)]
        return [f"{reply['content']} {reply['timings'].get('draft_n_accepted')}" for reply in replies]

    return f"{_both(lab, 'mtp-tiny', ask, '--spec-type', 'draft-mtp')} ubatches pipelined"


def embeddings(lab: Lab) -> str:
    """Embeddings: several texts in one request, each in one ubatch."""
    found = []
    for on in (False, True):
        with lab.server("tiny", "--embeddings", "--pooling", "mean", on=on) as running:
            rows = running.call("/embeddings", {"content": [prompt(20 + i, i) for i in range(6)]})
            found.append([json.dumps(row["embedding"]) for row in rows])
    assert found[0] == found[1], "the embeddings differ"
    return f"{len(found[0])} texts"


def together(lab: Lab) -> str:
    """Many prompts at once, ending in each other's batches: each gets the answer that it gets alone."""
    ones, some = (1,) * 8, (1, 2, 3, 1, 2, 3, 1, 2)
    n = 0
    # where users generate beside them, llama.cpp's own cache of a sliding window rounds as its cells happen to lie
    for preset, tried in (("tiny", (ones, some)), ("gptoss-tiny", (ones,)), ("granite-hybrid-tiny", (ones,))):
        with lab.server(preset, slots=8, context=1024) as running:
            for n_predict in tried:
                alone = [digest(answer(running, prompt(m, m + i), n_predict[i])) for i, m in enumerate(_LENGTHS)]
                found: dict[int, str] = {}

                def client(
                    i: int, m: int, n_predict: tuple[int, ...] = n_predict, found: dict[int, str] = found
                ) -> None:
                    found[i] = digest(answer(running, prompt(m, m + i), n_predict[i]))  # joined in the loop

                at_once(client)
                wrong = [i for i, text in enumerate(alone) if found.get(i) != text]
                assert not wrong, f"{preset}: prompts {wrong} got another answer than alone"
            n += pipelined(running)
    return f"{n} ubatches pipelined"


def report(lab: Lab) -> str:
    """The log line of the first prompt counts that prompt alone, not what the server tried out when it started."""
    with lab.server("tiny") as running:
        answer(running, prompt(600, 1))
        log = running.log.read_text(errors="replace")
    counts = re.findall(r"pipelined over 4 devices: (\d+) of (\d+) ubatches, waits", log)
    assert counts == [("19", "19")], f"{counts} in {running.log}"  # 600 tokens, 32 at a time
    return "19 of 19 ubatches"


def advice(lab: Lab) -> str:
    """Tensors that are kept off the devices of their layers: the standard path, and the log names a split of layers."""
    options = ("-ot", r"blk\.3\.ffn_down=CPU", "-lv", 4)
    with lab.server("tiny", *options, on=False) as off:
        expected = digest(answer(off, prompt(200, 1)))
    with lab.server("tiny", *options, on=True) as on:
        assert digest(answer(on, prompt(200, 1))) == expected, f"another answer, see {on.log}"
        log = on.log.read_text(errors="replace")
    found = re.search(r"prevents pipelining\. Without it, whole layers fit with( -ngl \d+)? -ts [\d,]+", log)
    assert found, f"no advice in {on.log}"
    assert "a device computes more than one split of the graph" in log, f"no reason in {on.log}"
    return found[0].rpartition("fit with ")[2]


def cancelled(lab: Lab) -> str:
    """Clients that hang up in the middle of a prompt, and of an answer: no slot stays busy, nobody else notices."""
    with lab.server("tiny", slots=4) as running:
        expected = digest(answer(running, prompt(600, 1)))
        for i in range(12):
            hang_up(running, prompt(1500, i), after=0.02 * (i % 5))
        await_idle(running)
        assert digest(answer(running, prompt(600, 1))) == expected, "another answer after 12 cancelled requests"
    return "12 requests cancelled"


def malformed(lab: Lab) -> str:
    """Requests that make no sense are refused, and change nothing."""
    bad: list[tuple[str, bytes]] = [
        ("/completion", b"{"),
        ("/completion", b"[]"),
        ("/completion", json.dumps({"prompt": {"a": 1}}).encode()),
        ("/completion", json.dumps({"prompt": [10**9, -5]}).encode()),
        ("/completion", json.dumps({"prompt": prompt(5000, 1)}).encode()),
        ("/completion", json.dumps({"prompt": "x", "n_predict": "many"}).encode()),
        ("/completion", json.dumps({"prompt": "x", "grammar": "root ::= ("}).encode()),
        ("/slots/99?action=erase", b"{}"),
        ("/nowhere", b"{}"),
    ]
    with lab.server("tiny") as running:
        expected = digest(answer(running, prompt(600, 1)))
        for path, data in bad:
            code = status_of(running, path, data)
            assert 400 <= code <= 501, f"{path} {data[:40]!r}: {code}"
        assert digest(answer(running, prompt(600, 1))) == expected, "another answer after malformed requests"
    return f"{len(bad)} requests refused"


def faults(lab: Lab) -> str:
    """A device fails once while many prompts are read: no wrong answer then, and none after that."""
    n_errors = 0
    with lab.server("tiny", slots=8, context=1024) as running:
        expected = [digest(answer(running, prompt(m, m + i), 1)) for i, m in enumerate(_LENGTHS)]
        short = digest(answer(running, prompt(20, 1)))
    # in the middle, and on the last device
    for graph in ("0/0/60/0", "0/0/71/0", "0/0/83/0", *(f"0/0/0/{n}" for n in range(40, 61, 7))):
        with lab.server("tiny", slots=8, context=1024, devices=f"fail_graph={graph}") as running:
            found: dict[int, str] = {}

            def client(i: int, m: int, running: LlamaServer = running, found: dict[int, str] = found) -> None:
                found[i] = or_status(lambda: digest(answer(running, prompt(m, m + i), 1)))

            for _ in range(3):
                at_once(client)
                wrong = {i: found[i] for i, text in enumerate(expected) if found[i] not in (text, "500")}
                assert not wrong, f"graph {graph} failed: prompts {wrong} got a wrong answer"
                n_errors += sum(text == "500" for text in found.values())
                # one that ends in its first batch, with nobody beside it
                assert or_status(lambda running=running: digest(answer(running, prompt(20, 1)))) in (short, "500")
            await_idle(running)
            at_once(client)
            assert [found[i] for i in range(len(_LENGTHS))] == expected, f"graph {graph} failed: wrong answers later"
    assert n_errors > 0, "no device failed"
    return f"{n_errors} requests got an error"


def faults_of_nobody(lab: Lab) -> str:
    """A device fails in ubatches of a request that was cancelled: the slot does not believe in the tokens it lost."""
    tokens = prompt(900, 5)
    with lab.server("tiny") as running:
        expected = digest(answer(running, tokens))
    n = 0
    for graph in range(2, 29, 2):
        devices = f"split_us=4000,fail_graph=0/0/{graph}/0"
        with lab.server("tiny", devices=devices) as running:
            hang_up(running, tokens, after=0.1)
            for _ in range(3):
                found = or_status(lambda running=running: digest(answer(running, tokens, cache_prompt=True)))
                assert found in (expected, "500"), f"graph {graph} failed: {found}, expected {expected}"
            assert found == expected, f"graph {graph} failed, and the server did not recover"
            n += 1
    return f"{n} servers"


def health(lab: Lab) -> str:
    """A device that does not answer: `/health` says so, and names it, until it does."""
    with lab.server("tiny", devices="stall_graph=0/20/0/0,stall_ms=0/3000/0/0", watchdog_s=0.5) as running:
        assert status_of(running, "/health", None) == 200
        reply: list[str] = []
        thread = threading.Thread(target=lambda: reply.append(digest(answer(running, prompt(900, 1)))))
        thread.start()
        deadline = time.monotonic() + 60
        while status_of(running, "/health", None) == 200:
            assert time.monotonic() < deadline, "/health says ok although a device does not answer"
            time.sleep(0.05)
        thread.join()
        while status_of(running, "/health", None) != 200:
            assert time.monotonic() < deadline, "/health does not say ok again"
            time.sleep(0.05)
        assert digest(answer(running, prompt(900, 1))) == reply[0]
        log = running.log.read_text(errors="replace")
    assert "VIRT1 has not finished" in log or "VIRT1 does not answer" in log, f"nobody was named, see {running.log}"
    return "503 while it lasted"


def at_once(client: Callable[[int, int], None]) -> None:
    """client(i, length) for each of _LENGTHS, in threads."""
    threads = [threading.Thread(target=client, args=item) for item in enumerate(_LENGTHS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def hang_up(running: LlamaServer, tokens: list[int], after: float) -> None:
    """Ask, wait, and close the connection without reading."""
    where = urlsplit(running.address)
    body = json.dumps({"prompt": tokens, "n_predict": 64, "stream": True, "cache_prompt": False}).encode()
    head = (
        f"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(after)


def or_status(ask: Callable[[], str]) -> str:
    """What it returns, or the HTTP status of the error."""
    try:
        return ask()
    except urllib.error.HTTPError as error:
        return str(error.code)


def status_of(running: LlamaServer, path: str, data: bytes | None) -> int:
    """The HTTP status of an answer."""
    try:
        with running.open(path, data, 60) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def await_idle(running: LlamaServer, patience: float = 60) -> None:
    """Wait until no slot is busy."""
    deadline = time.monotonic() + patience
    while any(slot["is_processing"] for slot in running.call("/slots")):
        assert time.monotonic() < deadline, f"a slot is still busy after {patience:g} s"
        time.sleep(0.1)


def read_stream(running: LlamaServer, tokens: list[int], n_predict: int) -> str:
    """The text of a streamed answer."""
    text = ""
    with request(running, prompt=tokens, n_predict=n_predict, stream=True, return_progress=True) as lines:
        for line in lines:
            if line.startswith(b"data: {"):
                text += json.loads(line[6:]).get("content", "")
    return text


ALL: tuple[Check, ...] = (
    prompts,
    cache_reuse,
    context_shift,
    slot_files,
    prompt_cache,
    drafts,
    embeddings,
    together,
    report,
    advice,
    cancelled,
    malformed,
    faults,
    faults_of_nobody,
    health,
)
