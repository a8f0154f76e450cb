"""Addresses for workers say whether they use TLS: which are accepted, and what is told about the others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config.cli import parse
from router.config.explicit_uri import explicit_uri, shown
from router.config.option_values import ValueRefusedError
from router.config.settings import Settings
from router.config.startup_checks import (
    StartupError,
    addresses_without_scheme,
    check_options,
    pylon_dial_addr,
    remote_watch_urls,
)

REMOTE = "remote Watch URL must be an explicit http:// or https:// URI"
DIAL = "Pylon gRPC dial address must be an explicit http:// or https:// URI"
NOT_ALLOWED = "http:// remote Watch URLs require --allow-insecure-remote-watch-http"


def settings(*arguments: str, env: dict[str, str] | None = None) -> Settings:
    base = ["--stargate-id=r", "--advertise-addr=127.0.0.1:50071", "--stargate-discovery-dns-name=x"]
    return parse([*base, *arguments], env or {})


def refused(*arguments: str, env: dict[str, str] | None = None) -> tuple[str, tuple[str, ...]]:
    with pytest.raises(StartupError) as caught:
        check_options(settings(*arguments, env=env))
    return caught.value.message, caught.value.causes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h:50071", "http://h:50071"),
        (" https://h ", "https://h"),
        ("HTTPS://Host.Example:443/", "https://Host.Example:443"),
        ("http://[::1]:5", "http://[::1]:5"),
        ("http://10.0.0.1:65535", "http://10.0.0.1:65535"),
        ("http://router_a.ns.svc:1", "http://router_a.ns.svc:1"),
    ],
)
def test_scheme_and_authority_are_kept(text: str, expected: str) -> None:
    assert explicit_uri(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is blank"),
        ("  ", "it is blank"),
        ("h:50071", "it has no scheme"),
        ("h", "it has no scheme"),
        ("//h:1", "it has no scheme"),
        ("grpc://h:1", "its scheme is grpc"),
        ("http://", "it has no host"),
        ("http://:80", "it has no host"),
        ("http://u@h:1", "it has user information"),
        ("http://u:p@h:1", "it has user information"),
        ("http://h:", "its port is not valid"),
        ("http://h:x", "its port is not valid"),
        ("http://h:65536", "its port is not valid"),
        ("http://h:-1", "its port is not valid"),
        ("http://h:1:2", "its port is not valid"),
        ("http://h:٣", "its port is not valid"),
        ("http://[::1", "its host is not valid"),
        ("http://[nope]:1", "its host is not valid"),
        ("http://[::1]x:1", "its host is not valid"),
        ("http://a b:1", "its host is not valid"),
        ("http://h:1/watch", "it has a path, a query or a fragment"),
        ("http://h:1//", "it has a path, a query or a fragment"),
        ("http://h:1?q", "it has a path, a query or a fragment"),
        ("http://h:1#f", "it has a path, a query or a fragment"),
        ("http://h:1\n2", "its port is not valid"),
    ],
)
def test_anything_else_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueRefusedError) as caught:
        explicit_uri(text)
    assert caught.value.reason == reason


@given(st.text(max_size=60) | st.from_regex(r"https?://[^/]*", fullmatch=True))
def test_any_text_is_accepted_or_refused_and_an_accepted_one_stays_as_it_is(text: str) -> None:
    try:
        found = explicit_uri(text)
    except ValueRefusedError:
        return
    assert explicit_uri(found) == found
    assert found.startswith(("http://", "https://"))


def test_a_message_does_not_show_a_password() -> None:
    assert shown("http://user:secret@h:1/x@y") == "http://***@h:1/x@y"
    assert shown("h:1\nError: x") == "h:1\\nError: x"
    message, causes = refused("--grpc-pylon-dial-addr=http://user:secret@h:1")
    assert message == DIAL
    assert causes == ("--grpc-pylon-dial-addr=http://***@h:1: it has user information",)


# Remote watch URLs


def test_a_remote_address_without_scheme_is_refused() -> None:
    assert refused("--remote-stargate-url=host:50071") == (
        REMOTE,
        ("--remote-stargate-url=host:50071: it has no scheme",),
    )
    assert refused(env={"STARGATE_REMOTE_WATCH_URLS": "https://a:1,b:2"})[0] == REMOTE
    assert refused(env={"STARGATE_REMOTE_WATCH_URLS": ""})[0] == REMOTE


def test_cleartext_to_other_installations_is_allowed_by_the_flag_or_its_variable_only() -> None:
    message, causes = refused("--remote-stargate-url=http://h:1")
    assert message == NOT_ALLOWED
    assert "http://h:1" in causes[0]
    assert remote_watch_urls(settings("--remote-stargate-url=http://h:1", "--allow-insecure-remote-watch-http")) == (
        "http://h:1",
    )
    env = {"STARGATE_ALLOW_INSECURE_REMOTE_WATCH_HTTP": "true", "STARGATE_REMOTE_WATCH_URLS": "http://h:1/"}
    assert remote_watch_urls(settings(env=env)) == ("http://h:1",)


def test_tls_to_other_installations_needs_no_flag_but_each_entry_counts() -> None:
    assert remote_watch_urls(settings("--remote-stargate-url=https://h:1")) == ("https://h:1",)
    assert refused("--remote-stargate-url=https://h:1,http://h:2")[0] == NOT_ALLOWED


# The address workers dial


@pytest.mark.parametrize("given", ["h:50071", "http://u:p@h:50071", "http://h:50071/path", "http://h:99999", "", "  "])
def test_a_dial_address_that_is_no_explicit_uri_is_refused(given: str) -> None:
    assert refused(f"--grpc-pylon-dial-addr={given}")[0] == DIAL


def test_a_cleartext_dial_address_needs_no_flag() -> None:
    check_options(settings("--grpc-pylon-dial-addr=http://h:50071"))
    assert pylon_dial_addr(settings("--grpc-pylon-dial-addr= http://h:50071 ")) == "http://h:50071"
    assert pylon_dial_addr(settings()) is None


def test_with_the_older_release_line_addresses_without_scheme_are_taken_as_they_are() -> None:
    given = ["--remote-stargate-url=a:1,http://b:2", "--grpc-pylon-dial-addr=c:3"]
    older = settings("--compat=0.11", *given)
    check_options(older)
    assert remote_watch_urls(older) == ("a:1", "http://b:2")
    assert pylon_dial_addr(older) == "c:3"
    assert addresses_without_scheme(older) == ["a:1", "c:3"]
    assert refused(*given)[0] == REMOTE
    assert addresses_without_scheme(settings("--grpc-pylon-dial-addr=http://c:3")) == []
