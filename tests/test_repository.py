"""What is in the repository, and that README and pyproject.toml say the same."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked() -> list[str]:
    """Return the files that are, or would be, under version control."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return sorted(name for name in set(out.split("\0")) if name and (ROOT / name).is_file())


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    if not (ROOT / ".git").exists():
        pytest.skip("an sdist: there is no list of tracked files")
    return {name: (ROOT / name).read_text(errors="replace") for name in tracked()}


def findings(texts: dict[str, str], pattern: str) -> list[str]:
    found = []
    for name, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{name}:{number}: {line.strip()[:120]}")
    return found


def test_no_path_of_a_machine(texts: dict[str, str]) -> None:
    places = "|".join(["home", "root", "work", "Users"])
    assert findings(texts, rf"(?<![\w.:/-])/({places})/\w") == []


def test_no_package_registry_is_named(texts: dict[str, str]) -> None:
    hosts = ["pypi" + r"\.org", "python" + "hosted", "npm" + r"js\.(org|com)", "debian" + r"\.org"]
    assert findings(texts, "|".join([*hosts, "--index" + "-url", "--find" + "-links"])) == []


def test_nobody_is_told_to_install_the_other_package(texts: dict[str, str]) -> None:
    assert findings(texts, r"(pip3?|uv add|pipx)\s+(\S+\s+)*['\"]?pyloop\b(?!-io)") == []


def test_generated_files_are_not_tracked(texts: dict[str, str]) -> None:
    generated = r"\.(so|o|a|pyc|whl|gz)$|_core\.c$|\.egg-info/|^(build|dist|benchmarks/results)/"
    assert [name for name in texts if re.search(generated, name)] == []


def test_readme_names_the_wheels_that_cibuildwheel_would_build() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("CIBW_")}
    command = [sys.executable, "-m", "cibuildwheel", "--platform", "linux"]
    built = subprocess.run(
        [*command, "--print-build-identifiers", str(ROOT)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    said = re.findall(r"^[cp]p3\d+-\S+$", README, re.MULTILINE)
    assert said
    assert sorted(said) == sorted(built)


def test_changelog_has_the_version_of_pyproject() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest
    assert newest[1] == PYPROJECT["project"]["version"]


def test_readme_explains_each_target_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    assert len(targets) > 10
    assert [t for t in targets if f"`make {t}" not in README] == []


def readme_code() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_code_in_readme_is_python() -> None:
    assert len(readme_code()) > 5
    for code in readme_code():
        compile(code, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)


def test_names_in_readme_exist() -> None:
    names = set(re.findall(r"\bpyloop[.:]([A-Za-z_]+)", README)) - {"lowlevel"}
    pyloop = importlib.import_module("pyloop")
    lowlevel = importlib.import_module("pyloop.lowlevel")
    assert {"Server", "run", "connect", "dial"} <= names
    assert {name for name in names if not hasattr(pyloop, name)} == set()
    primitives = ("FdSet", "select", "set_nonblocking", "is_nonblocking", "ReadBuffer")
    assert [name for name in primitives if not hasattr(lowlevel, name)] == []


def test_links_in_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
