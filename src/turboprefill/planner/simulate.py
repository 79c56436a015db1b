"""What a prompt costs on a machine: every ubatch through every stage, with links, host, slots and waits.

Everything that queues here does so in the order of the ubatches, so the events need no queue of their own: each time
is the latest of the times that it waits for. TurboPrefill's rules are those at the top of ggml-turboprefill-worker.cpp,
the standard path's those of ggml_backend_sched_compute_splits and llama_context::process_ubatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from turboprefill.planner.cost import Cost, prompt_seconds, ubatches

__all__ = ["Host", "Link", "Machine", "Outcome", "simulate"]

_STAGINGS = 3  # host regions of a staged boundary
_OUTBOXES = 2  # regions of a device that boundaries leave from
_PAD = 256  # cells to which llama.cpp rounds the part of the cache that a graph reads


@dataclass(frozen=True)
class Link:
    """The way from one stage to the next.

    Attributes:
        bandwidth: bytes per second.
        latency: seconds for each transfer.
        staged: through host memory, in two steps that may overlap with computing; else directly.
    """

    bandwidth: float = 1e15
    latency: float = 0.0
    staged: bool = False

    def seconds(self, n_bytes: float) -> float:
        """One transfer, or one step of a staged one."""
        return self.latency + n_bytes / self.bandwidth


@dataclass(frozen=True)
class Host:
    """What the host does for each ubatch before a device may start.

    Attributes:
        per_ubatch: seconds, to build a graph.
        per_cell: seconds for each entry of an attention mask: tokens times cells of the cache.
        masks: attention masks that a graph has.
    """

    per_ubatch: float = 0.0
    per_cell: float = 0.0
    masks: int = 1

    def seconds(self, c: float, p: float) -> float:
        """Time for `c` tokens after `p` others."""
        return self.per_ubatch + self.per_cell * self.masks * c * _cells(c, p)


@dataclass(frozen=True)
class Machine:
    """Stages in a row.

    Attributes:
        stages: what each costs.
        links: one for each pair of neighbours.
        host: the host.
        boundary: bytes that a stage hands on for each token.
        n_slots: ubatches in flight on TurboPrefill's path; by default two more than stages.
        n_copies: regions that arriving boundaries have.
        outbox: whether a boundary is put aside first, so that its device may go on while it leaves.
    """

    stages: Sequence[Cost]
    links: Sequence[Link] = ()
    host: Host = field(default_factory=Host)
    boundary: float = 0.0
    n_slots: int = 0
    n_copies: int = 4
    outbox: bool = True


@dataclass(frozen=True)
class Standard:
    """llama.cpp's own path.

    Attributes:
        copies: of each input, so many ubatches may be in flight.
        reuse: whether a graph is used again if its sizes are those of the one before; it then waits for that one.
        reuse_always: the sizes never change: sliding-window and recurrent caches.
        blocking: copies wait for the device that they come from, and there is one copy of each input.
    """

    copies: int = 4
    reuse: bool = True
    reuse_always: bool = False
    blocking: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        seconds: until the last ubatch has left the last stage.
        busy: seconds that each stage computes.
        host: seconds that the host works.
    """

    seconds: float
    busy: tuple[float, ...]
    host: float


def _cells(c: float, p: float) -> float:
    return -(-(p + c) // _PAD) * _PAD


def simulate(machine: Machine, n_tokens: int, n_ubatch: int, standard: Standard | None = None) -> Outcome:
    """Read a prompt.

    Args:
        machine: what it is read on.
        n_tokens: its length.
        n_ubatch: tokens of a ubatch.
        standard: llama.cpp's own path instead of TurboPrefill's.
    """
    sizes, before = ubatches(n_tokens, n_ubatch)
    times = [[float(t) for t in prompt_seconds(cost, n_tokens, n_ubatch)] for cost in machine.stages]
    steps = list(zip(map(float, sizes), map(float, before), strict=True))
    host = [machine.host.seconds(c, p) for c, p in steps]
    links = list(machine.links) or [Link()] * (len(times) - 1)
    run = _pipelined if standard is None else _standard
    end = run(machine, times, steps, host, links, standard or Standard())
    return Outcome(end, tuple(sum(stage) for stage in times), sum(host))


Times = list[list[float]]


def _pipelined(
    machine: Machine,
    times: Times,
    steps: list[tuple[float, float]],
    host: list[float],
    links: list[Link],
    _: Standard,
) -> float:
    n_stages = len(times)
    n_slots = machine.n_slots or n_stages + 3  # the CPU is a stage too, and there is always one slot to spare
    done: Times = [[] for _ in times]  # when a stage's device is done with a ubatch
    left: Times = [[] for _ in times]  # when its boundary has left
    uploaded: Times = [[] for _ in times]  # when that is there, if it is staged
    free = [0.0] * n_stages  # when a device may start another
    captured = 0.0
    for u, (c, _p) in enumerate(steps):
        captured = max(captured, _ago(done[-1], u, n_slots)) + host[u]
        arrived = captured
        for s in range(n_stages):
            end = max(free[s], arrived, captured) + times[s][u]
            done[s].append(end)
            if s == n_stages - 1:
                free[s] = end
                break
            step = links[s].seconds(c * machine.boundary)
            landing = _ago(done[s + 1], u, machine.n_copies)
            # staged: by the device into a region of the host, then by the next device, on a stream of its own
            room = _ago(uploaded[s], u, _STAGINGS) if links[s].staged else landing
            left[s].append(max(end, room, _ago(left[s], u, 1)) + step)
            arrived = left[s][u]
            if links[s].staged:
                arrived = max(arrived, landing, _ago(uploaded[s], u, 1)) + step
                uploaded[s].append(arrived)
            free[s] = max(end, _ago(left[s], u, _OUTBOXES)) if machine.outbox else left[s][u]
    return done[-1][-1]


def _ago(times: list[float], u: int, n: int) -> float:
    """The time of the ubatch that was n before u; 0 if there was none."""
    return times[u - n] if u >= n else 0.0


def _standard(
    machine: Machine,
    times: Times,
    steps: list[tuple[float, float]],
    host: list[float],
    links: list[Link],
    rules: Standard,
) -> float:
    n_stages = len(times)
    done: Times = [[] for _ in times]
    free = [0.0] * n_stages
    now = 0.0  # the one host thread
    copies = 1 if rules.blocking else rules.copies
    for u, (c, p) in enumerate(steps):
        same = u > 0 and c == steps[u - 1][0] and (rules.reuse_always or _cells(c, p) == _cells(*steps[u - 1]))
        if rules.reuse and same and not rules.blocking:
            now = max(now, *(stage[-1] for stage in done))  # the inputs of the graph before are overwritten
        now += host[u]
        arrived = 0.0
        for s in range(n_stages):
            if u >= copies:
                now = max(now, done[s][u - copies])  # this copy of the user's inputs is free
            if s and rules.blocking:
                now = max(now, done[s - 1][u]) + links[s - 1].seconds(c * machine.boundary)
                arrived = now
            end = max(now, arrived, free[s]) + times[s][u]
            done[s].append(end)
            free[s] = end
            if s < n_stages - 1 and not rules.blocking:
                free[s] = arrived = end + links[s].seconds(c * machine.boundary)
    return max(stage[-1] for stage in done)
