"""URL rule, idle timeout, the mailbox between reader and processing."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.control_plane.admission import admit
from router.control_plane.heartbeat import BadHeartbeat, idle_timeout_ms, parse_heartbeat_ms
from router.control_plane.inbox import Inbox, Signal
from router.control_plane.inference_server_url import InvalidUrlError, check_inference_server_url
from router.control_plane.worker_auth import bearer_token
from router.registry import Identity
from tunnel_protocol.control.stargate_pb2 import InferenceServerRegistration

NOT_A_URL = "must be a valid URL"
NO_HOST = "must include host"
NO_IP = "host must be an IP address"
NO_PORT = "must include port"
NOT_QUIC = "scheme must be quic"
NOT_HTTP = "scheme must be http or https"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("quic://10.0.0.1:8443", None),
        ("QUIC://10.0.0.1:8443", None),
        (" quic://user:word@10.0.0.1:8443/path?query#x\t", None),
        ("quic://10.0.0.1", NO_PORT),
        ("quic://10.0.0.1:", NO_PORT),
        ("quic://worker.example:8443", NO_IP),
        ("quic://[::1]:8080", NO_IP),
        ("quic://010.0.0.1:1", NO_IP),
        ("quic:///x", NO_HOST),
        ("quic:10.0.0.1:1", NO_HOST),
        ("quic://", NO_HOST),
        ("quic://:80", NOT_A_URL),
        ("quic://user@", NOT_A_URL),
        ("quic://10.0.0.1:65536", NOT_A_URL),
        ("quic://10.0.0.1:x", NOT_A_URL),
        ("quic://10.0.0.1:" + "9" * 5000, NOT_A_URL),
        ("quic://a b:1", NOT_A_URL),
        ("quic://[::1", NOT_A_URL),
        ("quic://[nonsense]:1", NOT_A_URL),
        ("quic://[::1%25eth0]:1", NOT_A_URL),
        ("10.0.0.1:8443", NOT_A_URL),
        ("no url", NOT_A_URL),
        ("//10.0.0.1:1", NOT_A_URL),
        ("http://10.0.0.1:80", NOT_QUIC),
        ("file:///x", NOT_QUIC),
        ("mailto:somebody", NOT_QUIC),
    ],
)
def test_url_of_a_worker_to_be_dialled(url: str, reason: str | None) -> None:
    assert refusal(url, reverse=False) == reason


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://engine:8000", None),
        ("https://engine", None),
        ("HTTP://Engine/path", None),
        ("http:engine", None),
        (r"http:\\engine\x", None),
        ("http://user@engine", None),
        ("http://bücher.example", None),
        ("http://[::1]", None),
        ("http://0x7f.1", None),
        ("http://017700000001", None),
        ("http://1.2.3.4.", None),
        ("http://0x", None),
        ("http://-127.0.0.1:9000", NOT_A_URL),
        ("http://1_0.1:80", NOT_A_URL),
        ("http://", NOT_A_URL),
        ("http://:80", NOT_A_URL),
        ("http://user@", NOT_A_URL),
        ("http://a b", NOT_A_URL),
        ("http://%zz", NOT_A_URL),
        ("http://%ff", NOT_A_URL),
        ("http://1.2.3.4.5", NOT_A_URL),
        ("http://1.2.3.256", NOT_A_URL),
        ("http://1..4", NOT_A_URL),
        ("http://256.1.1.1", NOT_A_URL),
        ("http://09.1.1.1", NOT_A_URL),
        ("http://1." + "9" * 200, NOT_A_URL),
        ("http://4294967296", NOT_A_URL),
        ("quic://10.0.0.1:1", NOT_HTTP),
        ("ftp://host", NOT_HTTP),
        ("file:///x", NOT_HTTP),
    ],
)
def test_url_of_a_worker_that_dials(url: str, reason: str | None) -> None:
    assert refusal(url, reverse=True) == reason


def refusal(url: str, *, reverse: bool) -> str | None:
    try:
        check_inference_server_url(url, reverse=reverse)
    except InvalidUrlError as error:
        return error.reason.removeprefix("inference_server_url ")
    return None


@given(st.one_of(st.text(), st.text("[]:/@.%0x1\\quic?# ", max_size=20).map("http://".__add__)), st.booleans())
def test_any_text_is_accepted_or_refused_with_a_reason(url: str, reverse: bool) -> None:
    refusal(url, reverse=reverse)


@pytest.mark.parametrize(
    ("heartbeat", "floor_s", "cap_s", "expected_s"),
    [
        ("120000", 60, 600, 360),
        ("1000", 60, 600, 60),
        ("0", 60, 300, 60),
        ("120000", 60, 300, 300),
        (None, 60, 300, 300),
        ("1000", 60, 10, 10),
        ("18446744073709551615", 60, 300, 300),
        ("soon", 60, 300, 300),
        ("-1", 60, 300, 300),
        ("1000", 0, 300, None),
        ("1000", 60, 0, None),
        (None, 0, 0, None),
    ],
)
def test_idle_timeout_is_negotiated(heartbeat: str | None, floor_s: int, cap_s: int, expected_s: int | None) -> None:
    parsed = parse_heartbeat_ms(heartbeat)
    usable = None if isinstance(parsed, BadHeartbeat) else parsed
    expected = None if expected_s is None else expected_s * 1000
    assert idle_timeout_ms(usable, floor_s * 1000, cap_s * 1000) == expected


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        (None, None),
        ("+5", 5),
        ("٣", BadHeartbeat.NOT_ASCII),
        (b"5", BadHeartbeat.NOT_ASCII),
        ("", BadHeartbeat.NOT_AN_INTEGER),
        (" 5", BadHeartbeat.NOT_AN_INTEGER),
        ("1_000", BadHeartbeat.NOT_AN_INTEGER),
        ("5.0", BadHeartbeat.NOT_AN_INTEGER),
        ("18446744073709551616", BadHeartbeat.NOT_AN_INTEGER),
        ("9" * 5000, BadHeartbeat.NOT_AN_INTEGER),
    ],
)
def test_announced_heartbeats(value: str | bytes | None, parsed: int | BadHeartbeat | None) -> None:
    assert parse_heartbeat_ms(value) == parsed


def test_identity_carries_what_was_sent_untrimmed_and_the_key_of_authentication() -> None:
    message = InferenceServerRegistration(
        inference_server_id=" w ", inference_server_url="quic://10.0.0.1:1", cluster_id=" "
    )
    assert admit(message, "key", reverse_listener=False) == Identity(
        " w ", " ", "quic://10.0.0.1:1", "key", reverse=False
    )


def test_empty_cluster_is_the_id() -> None:
    message = InferenceServerRegistration(
        inference_server_id="w", inference_server_url="http://engine:8000", reverse_tunnel=True
    )
    admitted = admit(message, None, reverse_listener=True)
    assert (admitted.cluster_id, admitted.url, admitted.reverse) == ("w", "http://engine:8000", True)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("Bearer abc", "abc"),
        ("Bearer  abc ", " abc "),
        ("Bearer ", ""),
        ("bearer abc", None),
        ("Bearer", None),
        ("Basic abc", None),
        ("Bearer äbc", None),
        (b"Bearer abc", None),
        (None, None),
    ],
)
def test_bearer_tokens(value: str | bytes | None, token: str | None) -> None:
    assert bearer_token(value) == token


# Inbox


def message(number: int, size: int = 0) -> bytes:
    return b"%d" % number + bytes(size)


async def test_inbox_hands_out_in_order_and_signals_last() -> None:
    inbox = Inbox()
    inbox.put(message(1))
    inbox.put(message(2))
    inbox.end(Signal.CLOSED)
    assert await inbox.get() == message(1)
    inbox.recovered()
    assert await inbox.get() is Signal.RECOVERED
    assert await inbox.get() == message(2)
    assert await inbox.get() is Signal.CLOSED


async def test_inbox_wakes_its_reader_and_survives_a_cancelled_one() -> None:
    inbox = Inbox()
    reader = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.wait([reader])
    reader = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(message(1))
    inbox.put(message(2))
    assert await reader == message(1)


async def test_inbox_ends_a_wait_that_is_too_long_unless_something_has_arrived() -> None:
    inbox = Inbox()
    reader = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.idle()
    assert await reader is Signal.IDLE
    reader = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(message(1))
    inbox.idle()
    assert await reader == message(1)
    inbox.put(message(2))
    assert await inbox.get() == message(2)


async def test_inbox_drops_the_oldest_reports_beyond_its_bounds() -> None:
    inbox = Inbox()
    for number in range(100):
        inbox.put(message(number))
    inbox.end(Signal.CLOSED)
    left = [await inbox.get() for _ in range(65)]
    assert left == [*(message(number) for number in range(36, 100)), Signal.CLOSED]
    inbox = Inbox()
    for number in range(3):
        inbox.put(message(number, 3 << 20))
    assert await inbox.get() == message(2, 3 << 20)
    inbox.put(message(4))
    assert await inbox.get() == message(4)
