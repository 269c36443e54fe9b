"""`import pyloop`: every public name is there, and what few programs need is imported when used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import pyloop

SOURCE = Path(pyloop.__file__).read_text()
HEAVY = [
    "pyloop.about",
    "pyloop.bus",
    "pyloop.channel",
    "pyloop.fork_model",
    "pyloop.memory",
    "pyloop.served",
    "pyloop.stats",
    "pyloop.thread_model",
    "hashlib",
    "importlib.metadata",
    "multiprocessing",
    "random",
    "tempfile",
]


def seen_by_type_checkers() -> dict[str, str]:
    """Return the names that only they import, and from where."""
    [block] = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom) and node.module is not None
        found |= {alias.name: node.module.removeprefix("pyloop.") for alias in node.names}
    return found


def test_every_public_name_is_there() -> None:
    namespace: dict[str, object] = {}
    exec("from pyloop import *", namespace)
    assert set(pyloop.__all__) == set(namespace) - {"__builtins__"}
    assert [name for name in pyloop.__all__ if isinstance(namespace[name], ModuleType)] == []
    assert set(pyloop.__all__) <= set(dir(pyloop))


def test_type_checkers_find_names_where_they_are_imported_from() -> None:
    assert seen_by_type_checkers() == pyloop._WHERE


@pytest.mark.parametrize("name", sorted(pyloop._WHERE))
def test_late_name_is_what_its_module_has(name: str) -> None:
    vars(pyloop).pop(name, None)
    thing = getattr(pyloop, name)
    assert thing is getattr(sys.modules[f"pyloop.{pyloop._WHERE[name]}"], name)
    assert vars(pyloop)[name] is thing  # found without __getattr__ from now on


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'pyloop' has no attribute 'Sever'$"):
        pyloop.Sever  # noqa: B018
    with pytest.raises(ImportError, match=r"^cannot import name 'Sever' from 'pyloop'"):
        exec("from pyloop import Sever")


def test_import_leaves_out_what_few_programs_need() -> None:
    code = (
        "import pyloop, sys; pyloop.new_event_loop().close();"
        "pyloop.Server(lambda conn, message: None); print(*sys.modules, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "pyloop.server" in loaded
    assert loaded & set(HEAVY) == set()


SERVE = """
import asyncio, sys, pyloop

async def main():
    def note(server):
        at_start.update(sys.modules)

    async with pyloop.Server(lambda conn, data: None, on_start=note) as server:
        conn = await pyloop.connect("127.0.0.1", server.port)
        conn.send(b"hello")
        server.stats()
        server.bus.publish("topic", b"message")
        conn.close()
        await conn.wait_closed()

at_start = {}
pyloop.connect  # the client's
pyloop.run(main())
print(*(name for name in sys.modules.keys() - at_start.keys() if name.startswith("pyloop")))
"""


def test_server_that_has_started_imports_nothing_more() -> None:
    done = subprocess.run([sys.executable, "-c", SERVE], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("\n", "")
