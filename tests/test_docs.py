"""README.md and docs/: names, files, functions and links lead somewhere, and code is Python."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

import pyloop
from pyloop import lowlevel

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
API = (ROOT / "docs" / "api.md").read_text()
SOURCES = {
    path.name: path.read_text()
    for pattern in ("csrc/*.[ch]", "csrc/fastpath/*.[ch]", "pyloop/*.py", "examples/*.py")
    for path in ROOT.glob(pattern)
    if path.name != "_core.c"
}
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def code_spans(text: str) -> list[str]:
    """What stands in backticks, blocks of code included."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return blocks + re.findall(r"`([^`\n]+)`", prose)


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def tree(code: str) -> ast.Module:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
    return compile(code, "a document", "exec", flags)


def names_in(text: str) -> set[str]:
    return {name for span in code_spans(text) for name in re.findall(r"[A-Za-z_]\w*", span)}


def public_members(thing: object) -> set[str]:
    """The public names that a class adds itself; nothing for what is no class."""
    if not inspect.isclass(thing):
        return set()
    ours = [base for base in thing.__mro__ if base.__module__.startswith("pyloop")]
    found = {name for base in ours for name in vars(base) if not name.startswith("_")}
    # A subclass's own view of asyncio's methods is asyncio's documentation.
    return (
        found
        if not issubclass(thing, pyloop.Loop)
        else found & {"backend", "stats", "slow_callback_hook"}
    )


# ---- the API page ----


@pytest.mark.parametrize("module", [pyloop, lowlevel], ids=lambda module: module.__name__)
def test_api_page_has_every_public_name(module: object) -> None:
    assert set(module.__all__) - names_in(API) == set()


@pytest.mark.parametrize(
    "thing",
    [getattr(module, name) for module in (pyloop, lowlevel) for name in module.__all__],
    ids=lambda thing: getattr(thing, "__name__", str(thing)),
)
def test_api_page_has_every_member_and_argument(thing: object) -> None:
    wanted = public_members(thing)
    if dataclasses.is_dataclass(thing):
        wanted |= {field.name for field in dataclasses.fields(thing)}
    if thing in (pyloop.run, pyloop.connect, pyloop.dial, pyloop.Server, lowlevel.select):
        wanted |= set(inspect.signature(thing).parameters)
    assert wanted - names_in(API) == set()


@pytest.mark.parametrize(
    "cls",
    [getattr(pyloop, name) for name in pyloop.__all__ if name.endswith(("Stats", "Counters"))],
    ids=lambda cls: cls.__name__,
)
def test_api_page_lists_exactly_the_counters(cls: type) -> None:
    found = re.search(rf"^`{cls.__name__}`: (.*?)\.\n", API, re.M | re.S)
    assert found
    assert re.findall(r"`(\w+)`", found[1]) == [field.name for field in dataclasses.fields(cls)]


def shown_arguments(function: str) -> dict[str, str]:
    """The arguments of a signature in the API page, with their defaults as source."""
    nodes = [node for code in python_blocks(API) for node in ast.walk(tree(code))]
    found = {node.name: node for node in nodes if hasattr(node, "name")}
    node = found["__init__" if function == "Server" else function]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    given = node.args
    names = [argument.arg for argument in (*given.args, *given.kwonlyargs)]
    padding = [None] * (len(given.args) - len(given.defaults))
    defaults = [*padding, *given.defaults, *given.kw_defaults]
    pairs = zip(names, defaults, strict=True)
    return {n: "" if value is None else ast.unparse(value) for n, value in pairs if n != "self"}


@pytest.mark.parametrize("function", ["Server", "connect", "dial"])
def test_api_page_shows_the_defaults(function: str) -> None:
    shown = shown_arguments(function)
    parameters = inspect.signature(getattr(pyloop, function)).parameters
    assert list(shown) == list(parameters)
    for name, default in shown.items():
        real = parameters[name].default
        assert (eval(default) if default else inspect.Parameter.empty) == real, name


def test_every_error_of_the_api_page_exists() -> None:
    section = API.partition("\n## Errors")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `?(\w+)`? \|", section, re.M)
    assert len(rows) == 5
    for name, base in rows:
        parent = getattr(pyloop, base, None) or getattr(importlib.import_module("builtins"), base)
        assert issubclass(getattr(pyloop, name), parent)


# ---- all pages ----


@each_document
def test_python_code_compiles(path: Path) -> None:
    for code in python_blocks(path.read_text()):
        tree(code)


@each_document
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles]
            assert anchor in slugs, target


@each_document
def test_source_files_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"`((?:csrc/|pyloop/|examples/)?\w+\.(?:c|h|py))`", path.read_text())
    unknown = {name for name in named if name.rpartition("/")[2] not in SOURCES}
    assert unknown - {"server.py", "conftest.py"} == set()


@pytest.mark.parametrize("name", ["tour.md", "backends.md"])
def test_functions_that_are_named_exist(name: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / "docs" / name).read_text(), flags=re.M | re.S)
    spans = set(re.findall(r"`([\w.]+)`", text))
    words = {word for source in SOURCES.values() for word in re.findall(r"\w+", source)}
    ours = {span for span in spans if "_" in span and not re.search(r"\.(c|h|py|md)$", span)}
    assert len(ours) > 5
    assert {span for span in ours if not set(span.split(".")) <= words} == set()


def test_code_of_the_tour_is_in_the_walk() -> None:
    tour = (ROOT / "docs" / "tour.md").read_text()
    found = re.search(r"^```python\n(for kind.*?)^```", tour, re.M | re.S)
    assert found
    walk = inspect.getsource(importlib.import_module("pyloop.walk").PythonWalk.walk)
    shown = [line.strip() for line in found[1].splitlines() if line.strip() != "..."]
    real = [re.sub(r": Any", "", line.strip()) for line in walk.splitlines()]
    assert [line for line in shown if line not in real] == []


def test_pages_are_reached_from_the_tour_or_readme() -> None:
    pages = {path.name for path in DOCUMENTS} - {"README.md", "tour.md"}
    linked = "".join((ROOT / name).read_text() for name in ("README.md", "docs/tour.md"))
    assert {page for page in pages if f"{page})" not in linked} == set()
