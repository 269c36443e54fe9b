"""A process without stdin, stdout and stderr: the core never takes those numbers for its fds."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from faults import ROOT, TIMEOUT, Peer

SCRIPT = """if True:
    import asyncio, json, os, sys, pyloop
    report = int(sys.argv[2])

    def kinds():
        return {int(n): os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                if os.path.lexists(f"/proc/self/fd/{n}")}

    at_start = sorted(kinds())
    loop = pyloop.Loop(sys.argv[1])
    made = sorted(set(kinds()) - set(at_start))
    accepted = []

    def echo(conn, line):
        if line == b"fd":
            accepted.append(pyloop.core.lib.pl_conn_fd(conn._ptr, conn.id))
        conn.send(line)

    async def main():
        server = pyloop.Server(echo, framing=pyloop.Lines())
        await server.start()
        os.write(report, json.dumps({"at_start": at_start, "port": server.port}).encode() + b"\\n")
        while not accepted or server.connections:
            await asyncio.sleep(0)
        await server.stop()

    loop.run_until_complete(main())
    loop.close()
    os.write(report, json.dumps({"made": made, "accepted": accepted}).encode() + b"\\n")
"""
CLOSED = 'exec "$@" 0<&- 1>&- 2>&-'


def test_process_without_stdio_serves_and_its_core_owns_no_fd_below_3(backend: str) -> None:
    reader, writer = os.pipe()
    command = ["sh", "-c", CLOSED, "sh", sys.executable, "-c", SCRIPT, backend, str(writer)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, pass_fds=[writer], env=env) as process, open(reader) as report:
        os.close(writer)
        told = json.loads(report.readline())
        assert not {0, 1, 2} & set(told["at_start"])
        peer = Peer(told["port"])
        assert peer.echo(b"hello") and peer.echo(b"fd")
        peer.close()
        told = json.loads(report.readline())
        assert len(told["made"]) >= 3 and min(told["made"] + told["accepted"]) >= 3, told
        assert process.wait(TIMEOUT) == 0
