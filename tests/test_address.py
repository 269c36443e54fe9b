"""Addresses as people write them."""

from __future__ import annotations

import pathlib
import re

import pytest

from pyloop.address import parse_address

EXPECTED = (
    'metrics: expected "host:port", "[::1]:port", ":port", a port, a Unix path with a slash '
    'or "@name", got '
)


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("127.0.0.1:9090", ("127.0.0.1", 9090)),
        ("localhost:9090", ("localhost", 9090)),
        ("0.0.0.0:9090", ("0.0.0.0", 9090)),
        (":9090", ("127.0.0.1", 9090)),
        ("9090", ("127.0.0.1", 9090)),
        (9090, ("127.0.0.1", 9090)),
        (0, ("127.0.0.1", 0)),
        ("[::1]:9090", ("::1", 9090)),
        ("[fe80::1%lo]:9090", ("fe80::1%lo", 9090)),
        (("example.org", 1), ("example.org", 1)),
        (("", 9090), ("127.0.0.1", 9090)),
        ("/run/it.sock", "/run/it.sock"),
        ("./it:80", "./it:80"),
        (pathlib.Path("it.sock"), "./it.sock"),
        ("@it", "\0it"),
    ],
)
def test_address_is_host_and_port_or_a_path(given, parsed):
    assert parse_address("metrics", given) == parsed


@pytest.mark.parametrize(
    "given",
    [
        "",
        ":",
        "127.0.0.1",
        "127.0.0.1:",
        "::1:9090",
        "a b:1",
        "host:x",
        "host:123456",
        "@",
        "a\0/b",
    ],
)
def test_text_that_is_no_address_is_named(given):
    with pytest.raises(ValueError, match=r"^metrics: expected ") as caught:
        parse_address("metrics", given)
    assert str(caught.value) == f"{EXPECTED}{given!r}"


@pytest.mark.parametrize(
    "given", [None, True, 1.5, ("h", "1"), ("h", True), (1, 2), b"x", ["h", 1]]
)
def test_what_is_no_address_is_a_type_error(given):
    with pytest.raises(TypeError) as caught:
        parse_address("metrics", given)
    assert str(caught.value) == f"{EXPECTED}{given!r}"


@pytest.mark.parametrize("given", [65536, -1, ":70000", ("h", 65536)])
def test_port_out_of_range_is_named(given):
    expected = f"metrics: expected a port of 0 to 65535, got {given!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        parse_address("metrics", given)
