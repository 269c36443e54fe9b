"""The rooms of the project and the arrows between them: imports, #includes, sizes.

A new file must be entered in the tables below: decide where it stands, then write it down here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"

# Python: a module may import what stands further down, or further right on its own line.
# `if TYPE_CHECKING:` imports are names for annotations, not arrows.
PYTHON_LEVELS = """
    __init__ __main__
    about
    serve
    fresh
    application
    run
    supervisor metrics responder exposition
    process watchdog
    launch worker
    serving
    top screen rates finding
    server client
    service
    thread_model fork_model
    buses
    bus models
    redis_broker nats_broker shm_broker
    remote_broker
    subscription
    broker
    acceptor
    forking
    channel rings turns loop
    blocked
    streams pipes sock_calls subprocesses watches
    stream_transport
    datagram_calls datagrams running dispatch transports tls handlers
    served_tls
    served
    outlet
    blocking connection stats
    inbox outbox logs tls_protocol groups
    handles monitors
    walk endpoint
    protocol
    supervision slots
    shared_lock semaphore
    placing
    groups
    memory mapped lowlevel options framing listening
    waiting page mapping
    fast
    core
    _core _fastpath errors records sockaddr address seams
"""
PYTHON_ORDER = {name: place for place, name in enumerate(PYTHON_LEVELS.split())}

# C: which of our headers a file (its .c and its .h) may include, besides pyloop.h and its own.
# loop.h is the record that the files of the loop level share; below them nobody sees it.
LOOP_LEVEL = ["loop", "lent", "api", "gather", "accept", "lifecycle", "dgrams", "group", "watch"]
UNDER_LOOP = {
    *("deadline", "listener", "conn", "datagram", "slots", "batch", "table", "wake", "poller"),
    "sock",
}
C_ARROWS: dict[str, set[str]] = {
    **{name: {"loop", "frame", "buf", "mapping"} | UNDER_LOOP for name in LOOP_LEVEL},
    "deadline": {"conn"},
    "listener": {"sock"},
    "conn": {"sock", "buf", "frame", "out"},
    "out": {"sock", "buf", "mapping"},
    "datagram": {"sock"},
    "slots": {"sock"},
    "batch": {"buf"},
    "table": set(),
    "wake": {"sock"},
    "memory": {"sock"},
    "semaphore": {"sock"},
    "mapping": {"sock"},
    "reuseport": set(),
    "orphan": set(),
    "poller": set(),
    "poller_select": {"poller", "sock"},
    "poller_poll": {"poller", "sock"},
    "poller_epoll": {"poller", "sock"},
    "reader": {"buf", "frame"},
    "frame": {"buf"},
    "buf": {"mapping"},
    "blocking": {"sock"},
    "fast": {"pyloop_api"},
    "build": set(),
    "pyloop_api": set(),
    "fdset": set(),
    "sock": set(),
    "step": set(),
    "lock": {"sock", "step"},
    "placed_lock": set(),
    "region": {"lock", "sock"},
    "region_make": {"region", "sock"},
    "feed": {"region", "lock", "step"},
    "ring": {"region", "lock", "sock", "step"},
    "ring_make": {"ring", "region"},
    "pyloop": {
        "pyloop_datagram",
        "pyloop_feed",
        "pyloop_map",
        "pyloop_memory",
        "pyloop_page",
        "pyloop_parts",
        "pyloop_ring",
        "pyloop_semaphore",
    },
    "pyloop_datagram": set(),
    "pyloop_map": set(),
    "pyloop_feed": set(),
    "pyloop_ring": set(),
    "pyloop_memory": set(),
    "pyloop_page": set(),
    "pyloop_parts": set(),
    "pyloop_semaphore": set(),
}
# Among themselves, a file of the loop level calls those right of it. loop_guard goes with loop.h.
CALLS_UP = {"loop_guard"}
# Files that make system calls, and so read errno.
SYSTEM_CALLS = {
    "blocking",
    "orphan",
    "reuseport",
    "sock",
    "fdset",
    "wake",
    "mapping",
    "memory",
    "semaphore",
    "lock",
    "region",
    "region_make",
    "uring",
}

PY_FILES = sorted((ROOT / "pyloop").glob("*.py"))
C_FILES = sorted([*CSRC.rglob("*.c"), *CSRC.rglob("*.h")])
OUR_FILES = [
    *PY_FILES,
    *C_FILES,
    *[ROOT / "setup.py", ROOT / "build_ffi.py"],
    *sorted(
        path
        for folder in ("tests", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".c", ".h")
    ),
]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name_of)


# ---- Python -------------------------------------------------------------------


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk `tree`, without what only type checkers see."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            assert isinstance(child, ast.If)
            for branch in child.orelse:
                yield branch
                yield from nodes(branch)
        else:
            yield child
            yield from nodes(child)


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Yield the full dotted names that `tree` imports; `from pyloop import x` is pyloop.x."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = "pyloop" if node.level else ""
            base = ".".join(part for part in (package, node.module) if part)
            if base == "pyloop":
                yield from (f"pyloop.{alias.name}" for alias in node.names)
            else:
                yield base


def own_imports(path: Path) -> set[str]:
    """Return the modules of pyloop that a file imports; "__init__" for names out of the package."""
    found = set()
    for name in imported_modules(ast.parse(path.read_text())):
        package, _, rest = name.partition(".")
        if package == "pyloop":
            module = rest.split(".")[0]
            found.add(module if module in PYTHON_ORDER else "__init__")
    return found


@each(PY_FILES)
def test_python_module_stands_in_the_table(path: Path) -> None:
    assert path.stem in PYTHON_ORDER, f"{path.stem}: add it to PYTHON_LEVELS in {__file__}"


@each(PY_FILES)
def test_python_imports_point_down(path: Path) -> None:
    place = PYTHON_ORDER.get(path.stem, -1)
    upward = {module for module in own_imports(path) if PYTHON_ORDER[module] <= place}
    assert not upward, f"{path.stem} may not import {upward}: see PYTHON_LEVELS"


@each([path for path in PY_FILES if path.stem != "core"])
def test_only_core_imports_the_extension(path: Path) -> None:
    names = set(imported_modules(ast.parse(path.read_text())))
    assert not {n for n in names if n.split(".")[0] in ("cffi", "_cffi_backend")}
    assert "_core" not in own_imports(path)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function's body; its signature and docstring are not length."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    assert function.end_lineno is not None
    return function.end_lineno - body[0].lineno + 1


@each(PY_FILES)
def test_python_functions_are_under_40_lines(path: Path) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert {f.name: code_lines(f) for f in functions if code_lines(f) >= 40} == {}


# ---- C ------------------------------------------------------------------------


def without_comments(text: str) -> str:
    """Blank out comments and strings; lines stay where they are."""
    literal = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
    return re.sub(literal, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL)


def c_code(path: Path) -> str:
    return without_comments(path.read_text())


def c_functions(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (head, name, body) of each function: its brace stands in the first column."""
    pattern = r"^([a-zA-Z_][^;{}#]*?\b(\w+)\([^;{}]*\))\n(\{\n.*?^\})"
    for match in re.finditer(pattern, c_code(path), re.MULTILINE | re.DOTALL):
        yield match[1], match[2], match[3]


@each(C_FILES)
def test_c_file_stands_in_the_table(path: Path) -> None:
    if path.parent == CSRC:
        assert path.stem in C_ARROWS, f"{path.stem}: add it to C_ARROWS in {__file__}"


@each([path for path in C_FILES if path.parent == CSRC])
def test_c_includes_point_down(path: Path) -> None:
    included = set(re.findall(r'^\s*#\s*include\s+"(.+)\.h"', path.read_text(), re.MULTILINE))
    above = included - C_ARROWS.get(path.stem, set()) - {"pyloop", path.stem}
    assert not above, f"{path.name} may not include {above}: see C_ARROWS"


def test_calls_inside_the_loop_level_point_right() -> None:
    paths = [CSRC / f"{name}.c" for name in LOOP_LEVEL]
    functions = {path.stem: list(c_functions(path)) for path in paths if path.exists()}
    owner = {
        name: stem
        for stem, found in functions.items()
        for head, name, _ in found
        if not head.startswith("static") and name not in CALLS_UP
    }
    upward = {
        (stem, called)
        for stem, found in functions.items()
        for _, _, body in found
        for called in re.findall(r"\b(\w+)\(", body)
        if called in owner and LOOP_LEVEL.index(owner[called]) < LOOP_LEVEL.index(stem)
    }
    assert upward == set()


@each(C_FILES)
def test_python_h_is_only_in_fastpath(path: Path) -> None:
    if path.parent.name != "fastpath":
        assert not re.search(r'include\s*[<"]Python\.h', path.read_text())


@each(C_FILES)
def test_c_neither_prints_nor_ends_the_process(path: Path) -> None:
    forbidden = r"\b(?:v?f?printf|puts|fputs|putchar|perror|abort|_?exit|quick_exit)\s*\("
    assert re.findall(forbidden, c_code(path)) == []


@each(C_FILES)
def test_c_has_no_static_mutable_state(path: Path) -> None:
    code = c_code(path)
    tables = (
        r"^(?:static |struct )?(?:Py(?:Method|Member|GetSet|Module)Def|Py(?:Type|ModuleDef)_\w+)\b"
    )
    code = re.sub(tables, "const", code, flags=re.MULTILINE)  # CPython declares them without const
    inside = re.findall(r"^[ \t]+static\s+(?!.*\bconst\b)[^\n]*", code, re.MULTILINE)
    plain = r"^(?![^\n]*\bconst\b|typedef|extern|struct \w+ ?[;{]|enum|union|static inline|#|\})"
    variable = r"[a-z][\w \t*]*[\w\]]+[ \t]*(?:=[^\n]*|;|\[[^\n]*)$"
    outside = re.findall(plain + variable, code, re.MULTILINE)
    assert inside + outside == []


@each(C_FILES)
def test_errno_is_read_only_beside_system_calls(path: Path) -> None:
    if path.stem in SYSTEM_CALLS or path.stem.startswith("poller"):
        return
    code = re.sub(r"#\s*include\s*<errno\.h>", "", c_code(path))
    assert not re.search(r"\berrno\b", code)


@each(C_FILES)
def test_c_functions_are_under_60_lines(path: Path) -> None:
    lengths = {
        name: head.count("\n") + body.count("\n") + 2 for head, name, body in c_functions(path)
    }
    assert {name: lines for name, lines in lengths.items() if lines >= 60} == {}


@each(C_FILES)
def test_c_code_fits_100_columns_and_comments_120(path: Path) -> None:
    both = zip(path.read_text().splitlines(), c_code(path).splitlines(), strict=True)
    wide = [
        number
        for number, (line, code) in enumerate(both, 1)
        if len(line) > 120 or (len(code.rstrip()) > 100 and len(line) > 100)
    ]
    assert not wide, f"{path.name}: lines {wide}"


# ---- both ---------------------------------------------------------------------


@each(OUR_FILES)
def test_files_have_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
