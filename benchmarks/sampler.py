"""The ways to take a sample, and the patience to take one again.

load     a server, and the load generator
memory   a server whose connections are held: resident memory of each
itself   a script that measures what it does: looptime.py
wrk      a web server, and a load generator of others: http_wrk.py
"""

from __future__ import annotations

import json
import time

import http_wrk
import measure
import tools
from row import Peer, Row

NS = {"ns": 1, "us": 1e3, "ms": 1e6}
RUN_SECONDS = 120  # until a script has given up


def itself_sample(
    row: Row, peer: Peer, packages: tools.Packages, cpus: tools.Cpus, times: dict[str, float]
) -> dict[str, float]:
    """Run a script that prints what an operation cost it."""
    packages = packages.of(peer)
    command = [packages.python, str(tools.HERE / peer.program), *peer.args]
    for name, value in {**times, **row.load_for(peer)}.items():
        command += [f"--{name}", str(value)]
    with measure.Child(command, {cpus.server}, packages.env | peer.env) as child:
        sample = json.loads(child.line(RUN_SECONDS))
    sample["cost"] = sample["ns"] / NS[row.unit.partition("/")[0]]
    return sample


WAYS = {
    "load": measure.cpu_sample,
    "memory": measure.rss_sample,
    "itself": itself_sample,
    "wrk": http_wrk.sample,
}


class Sampler:
    """Takes samples, and takes one again when other work on the machine disturbed it.

    The kernel tells how long server and generator were ready to run but waited for
    their CPU (/proc/PID/schedstat). Above DISTURBED of the window the sample is taken
    again, twice at most and for `patience` seconds in the whole run; the best is kept.
    Of processes that wait for one another it tells nothing: then "disturbed" is what
    others used of the CPUs of server and generator.
    """

    def __init__(
        self,
        packages: tools.Packages,
        cpus: tools.Cpus,
        times: dict[str, float],
        patience: float,
    ) -> None:
        self.fixed = (packages, cpus, times)
        self.patience = patience
        self.retaken = 0

    def sample(self, row: Row, peer: Peer) -> dict[str, float]:
        """One sample of `peer` on `row`: a dict whose "cost" is in row.unit."""
        if row.tls:
            tools.make_certificate(self.fixed[0])
        take = WAYS[row.way]
        best = take(row, peer, *self.fixed)
        for _ in range(2):
            if best.get("disturbed", 0) <= measure.DISTURBED or self.patience <= 0:
                break
            start = time.monotonic()
            again = take(row, peer, *self.fixed)
            self.patience -= time.monotonic() - start
            self.retaken += 1
            best = min(best, again, key=lambda s: s["disturbed"])
        return best
