"""Runs drivers: one process per arm and model, ended after a time limit, and RPC servers for the smoke mode."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arms import Case
from builds import Builds
from plan import SINGLE_WARM_UP, Run
from results import Record


@dataclass(frozen=True)
class Settings:
    """What all processes share. `servers` is empty with GPUs; `warm_up` is a fraction of the prompt."""

    n_devices: int
    repeats: int
    warm_up: float
    threads: int
    servers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a process printed, whole lines only, and what went wrong, if anything did."""

    header: Record | None
    jobs: list[Record]
    fault: str


def job(case: Case, settings: Settings, *, single: bool) -> str:
    """The driver's description of a case."""
    parts = {
        "n": case.n_prompt,
        "ub": case.n_ubatch,
        "nb": case.n_batch,
        "r": 1 if case.once else settings.repeats,
        # one device is slow, and has no pipeline to fill
        "w": 0 if case.once else int(min(case.n_prompt * settings.warm_up, SINGLE_WARM_UP if single else 1e9)),
        "t": settings.threads,
        "state": int(case.state),
        "steps": int(single and not case.once),
        "gen": case.n_gen,
    }
    return ",".join(f"{key}={value}" for key, value in parts.items())


def run(run: Run, builds: Builds, model: Path, shares: str, settings: Settings, limit: float) -> Answer:
    """One process. It gets `limit` seconds; what it finished until then counts."""
    arm = run.arm
    mode = "none" if arm.split == "none" else "layer"
    program = [str(builds.driver(arm.build)), "run", str(builds.folder(arm.build)), str(model), mode, shares]
    servers = settings.servers[:1] if mode == "none" else settings.servers
    jobs = [job(case, settings, single=arm.name == "single") for case in run.cases]
    env = {key: value for key, value in os.environ.items() if not key.startswith("TURBOPREFILL")} | dict(arm.env)
    if builds.modules:
        env["GGML_BACKEND_PATH"] = str(builds.modules[arm.peer])
        visible = env.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(settings.n_devices)))
        env["CUDA_VISIBLE_DEVICES"] = ",".join(visible.split(",")[: 1 if mode == "none" else settings.n_devices])
    # timeout(1) also ends a driver that hangs in the device's driver and does not answer signals of ours
    command = ["timeout", "-k", "5", f"{limit:.0f}", *program, ",".join(servers) or "-", *jobs]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{") and line.endswith("}")]
    fault = ""
    if done.returncode != 0:
        why = f"no end after {limit:.0f} s" if done.returncode in (124, 137) else f"exit status {done.returncode}"
        last = " | ".join(done.stderr.strip().splitlines()[-3:])
        fault = f"{arm.name} on {run.model}, round {run.round + 1}, case {len(lines) or 1}: {why}. {last}"
    return Answer(lines[0] if lines else None, lines[1:], fault)


@contextlib.contextmanager
def rpc_servers(builds: Builds, count: int) -> Iterator[tuple[str, ...]]:
    """`count` servers with one thread each on 127.0.0.1, ended on leaving."""
    endpoints, servers = [], []
    try:
        for _ in range(count):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                endpoints.append(f"127.0.0.1:{probe.getsockname()[1]}")
            command = [str(builds.driver("plain")), "serve", str(builds.folder("plain")), endpoints[-1]]
            servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        _wait(endpoints)
        yield tuple(endpoints)
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _wait(endpoints: Sequence[str], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    for endpoint in endpoints:
        host, port = endpoint.split(":")
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
