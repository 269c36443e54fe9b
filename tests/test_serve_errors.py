"""`python -m pyloop serve`: each mistake is told once, with the exit status that fits."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from command import Command, app

from pyloop.__main__ import cli
from pyloop.application import Application, ApplicationError, describe

MODULES = {
    "plain": "import pyloop\nnumber, empty = 7, []\n" + app(),
    "broken": "import pyloop\npyloop.Server(7)\n",
    "syntax": "def (:\n",
    "needs": "\nimport nothing_of_that_name\n",
    "leaves": "import sys\nsys.exit(5)\n",
    "runs": "import pyloop\npyloop.run(pyloop.Server(lambda conn, message: None))\n",
    "bound": "import socket, pyloop\nsock = socket.create_server(('127.0.0.1', 0))\n"
    "server = pyloop.Server(lambda conn, message: None, sock=sock)\n",
    "many": "import pyloop\ndef make(**options):\n"
    "    return pyloop.Server(lambda conn, message: None, **options)\n"
    "differ = make(port=1), make(port=2, workers=2)\ntwice = differ[0], differ[0]\n"
    "forked = make()\nforked._model = 'fork'\nmixed = [make(), forked]\n",
}


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """`refused(target, ...)`: try to describe it; return why that failed, of DIR/module.py."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, source in MODULES.items():
        (tmp_path / f"served_{name}.py").write_text(source)

    def refused(target, **options):
        application = Application(f"served_{target}", app_dir=str(tmp_path), **options)
        try:
            with pytest.raises(ApplicationError) as caught:
                describe(application)
        finally:
            for name in [name for name in sys.modules if name.startswith("served_")]:
                module = sys.modules.pop(name)
                if hasattr(module, "sock"):
                    module.sock.close()
        said = str(caught.value).replace(str(tmp_path), "DIR")
        assert said.startswith(f"cannot serve {application.target}: ")
        return said.partition(": ")[2].replace("served_", "")

    return refused


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("absent:server", "there is no module 'absent' in DIR"),
        ("plain.deeper:server", "there is no module 'plain.deeper' in DIR"),
        ("plain:serve", "there is no 'serve' in DIR/plain.py"),
        ("plain:server.nothing", "there is no 'server.nothing' in DIR/plain.py"),
        ("plain:number", "expected a pyloop.Server, or a list of them, got 7"),
        ("plain:empty", "expected at least one pyloop.Server, got none"),
        (
            "bound:server",
            "a Server with sock= cannot be served by workers that start afresh: "
            "give it host and port, or path",
        ),
        ("many:twice", "the same Server is there twice"),
        ("many:mixed", 'model="fork" runs alone, got 2 servers'),
        (
            "many:differ",
            "run() got servers that differ in workers, but all share the same workers: "
            "<pyloop.Server 127.0.0.1:1 stopped> has 1, <pyloop.Server 127.0.0.1:2 stopped> has 2",
        ),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(refused, target, text):
    assert refused(target) == text


def test_function_without_factory_is_refused_with_a_hint(refused):
    said = refused("plain:answer")
    assert re.fullmatch(
        r"expected a pyloop.Server, got <function answer at 0x\w+> "
        r"\(a function that makes one: --factory\)",
        said,
    )


@pytest.mark.parametrize(
    ("target", "what", "frame", "last"),
    [
        ("broken:server", "raised an exception", "line 2, in <module>", "TypeError: handler: "),
        ("syntax:server", "raised an exception", "line 1", "SyntaxError: "),
        ("needs:server", "raised an exception", "line 2, in <module>", "ModuleNotFoundError: "),
        ("leaves:server", "ended the interpreter, status 5", "line 2, in <module>", "SystemExit"),
        (
            "runs:server",
            "raised an exception",
            "line 2, in <module>",
            "RuntimeError: run() with servers was called while `serve` imports them: put it under "
            'if __name__ == "__main__":',
        ),
    ],
)
def test_what_a_module_raises_is_shown_from_its_own_code_on(refused, target, what, frame, last):
    said = refused(target).splitlines()
    assert said[0] == f"its code {what}"
    frames = [line.strip() for line in said if line.startswith("  File ")]
    module = target.partition(":")[0]
    assert frames[0] == f'File "DIR/{module}.py", {frame}'
    assert said[-1].startswith(last)


def test_factory_that_cannot_be_called_shows_no_frame_of_pyloop(refused):
    assert refused("plain:answer", factory=True).splitlines() == [
        "its code raised an exception",
        "TypeError: answer() missing 2 required positional arguments: 'conn' and 'line'",
    ]


def test_option_that_does_not_fit_the_servers_is_refused(refused):
    assert refused("many:forked", limits={"workers": 2}) == (
        'workers: model="fork" is served by 1, got 2'
    )
    assert refused("many:twice", port=0) == "the same Server is there twice"
    assert refused("many:differ", port=0) == "an address was given, but there are 2 servers"


@pytest.mark.parametrize(
    ("source", "last"),
    [
        ("raise LookupError('of mine')\n", "LookupError: of mine"),
        (
            "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
            "Error: cannot serve app:server: the interpreter that imported it ended with signal 9",
        ),
    ],
)
def test_module_that_cannot_be_loaded_ends_with_status_1_and_is_told_of_once(
    tmp_path, source, last
):
    with Command(tmp_path, "app:server", app=source) as command:
        assert command.finish() == 1
    lines = command.log().splitlines()
    assert lines[0].endswith(" loading app:server")
    assert lines[1].startswith("Error: cannot serve app:server: ")
    assert lines[-1] == last
    assert lines.count(last) == 1
    assert "application.py" not in "".join(lines)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "Missing argument 'MODULE:SERVER'."),
        (["chat"], "'chat': expected module:attribute, such as chat:server for the \"server\" of"),
        (["./chat.py:server"], "'./chat.py:server': expected module:attribute"),
        (["chat:server", "--workers", "0"], 'workers: expected 1 to 1024, or "auto" for one per'),
        (["chat:server", "--workers", "two"], 'workers: expected 1 to 1024, or "auto" for one per'),
        (["chat:server", "--port", "70000"], "Invalid value for '--port': 70000 is not in the"),
        (["chat:server", "--port", "1", "--path", "s"], "path, and host or port: expected one of"),
        (["chat:server", "--path", "@"], "path: expected a path or an abstract name, got '@'"),
        (["chat:server", "--max-rss", "2T"], "'2T': expected bytes, such as 500000000 or 512M"),
        (["chat:server", "--worker-timeout", "-1"], "worker_timeout: expected a positive number"),
        (["chat:server", "--drain-timeout", "nan"], "drain_timeout: expected seconds, not negativ"),
        (["chat:server", "--max-messages", "-5"], "max_messages: expected 1 to"),
        (["chat:server", "--backend", "kqueue"], "backend='kqueue': expected one of auto, select"),
        (["chat:server", "--app-dir", "/nowhere"], "Invalid value for '--app-dir': Directory"),
        (["chat:server", "--log-level", "loud"], "Invalid value for '--log-level': 'loud' is not"),
    ],
)
def test_wrong_usage_ends_with_status_2(args, text):
    result = CliRunner().invoke(cli, ["serve", *args])
    assert result.exit_code == 2
    assert text in result.output


def test_help_and_version_are_there():
    result = CliRunner().invoke(cli, ["serve", "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage: cli serve [OPTIONS] MODULE:SERVER")
    assert re.search(
        r"--workers N\|auto +Processes that serve; auto is one per core\.", result.output
    )
    version = CliRunner().invoke(cli, ["--version"])
    assert re.fullmatch(r"pyloop \d+\.\d+\.\d+\n", version.output)


def test_document_has_every_option():
    document = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
    named = set(re.findall(r"`(--[a-z-]+)", document))
    options = {name for param in cli.commands["serve"].params for name in param.opts}
    assert named & options == {name for name in options if name.startswith("--")} - {"--help"}


def test_reload_without_watchfiles_names_the_extra():
    script = "import sys; sys.modules['watchfiles'] = None; from pyloop.__main__ import cli; cli()"
    result = subprocess.run(
        [sys.executable, "-c", script, "serve", "chat:server", "--reload"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert 'Error: --reload needs watchfiles: pip install "pyloop-io[reload]"' in result.stderr


@pytest.mark.parametrize("missing", ["a/pid", "a/sock"])
def test_file_that_cannot_be_made_is_named(tmp_path, missing):
    option = "--pid-file" if missing == "a/pid" else "--path"
    with Command(tmp_path, "app:server", option, missing, app=app()) as command:
        assert command.finish() == 1
    assert re.search(rf"^Error: \[Errno 2\] .*{missing}", command.log(), re.MULTILINE)


def test_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Command(tmp_path, "app:server", "--port", str(port), app=app()) as command:
            assert command.finish() == 1
    assert command.log().splitlines()[1:] == [
        f"Error: [Errno 98] cannot listen on 127.0.0.1:{port}: Address already in use"
    ]


def test_workers_that_fail_where_the_description_did_not_are_told_of_once(tmp_path):
    broken = "import os\nif os.path.exists('seen'): raise LookupError('of the worker')\n"
    source = broken + "open('seen', 'w').close()\n" + app()
    with Command(tmp_path, "app:server", app=source) as command:
        assert command.finish() == 3
    log = command.log()
    assert log.count("LookupError: of the worker") == 1
    assert log.count("Traceback") == 1
    assert re.search(r"ERROR .* worker \d \(pid \d+\) failed:\ncannot serve app:server: its", log)
    assert "CRITICAL" in log and log.endswith(
        "no worker became ready in 5 attempts of each: giving up\n"
    )
