"""For the tests that send MappedViews: a large file for all, and small ones to truncate."""

from __future__ import annotations

import pytest

import pyloop

BYTES = bytes(range(251)) * 40_000  # 10 MB: more than a connection buffers
SIZE = len(BYTES)
SMALL = 100_000
TRUNCATED = "^.Errno 14. a mapped file was truncated, or its disk failed, while a view"


@pytest.fixture(scope="module")
def big_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("mapped") / "file"
    file.write_bytes(BYTES)
    yield file
    file.unlink()


@pytest.fixture
def mapped(big_file):
    """A private map: what a test writes is sent, and does not reach the file."""
    return pyloop.MappedFile(big_file, mode="c")


@pytest.fixture
def small_file(tmp_path):
    """A file to truncate."""
    file = tmp_path / "small"
    file.write_bytes(BYTES[:SMALL])
    return file
