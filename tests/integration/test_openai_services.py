"""What the OpenAI front is given follows from the options; what cannot be used, or is dangerous, ends the start with one line."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from router.config import package_settings
from router.config.cli import parse
from router.config.openai_checks import check_openai_access
from router.config.option_values import SocketAddress, ValueRefusedError, forbidden_status, open_or_closed
from router.config.settings import Settings
from router.config.startup_checks import StartupError
from router.openai.affinity import GatewayAffinity, ScopedAffinity
from router.openai.keys.key_file import KeyEntry, KeyFile, LimitEntry
from router.openai.keys.key_format import digest_of, new_key
from router.openai.keys.key_store import KeyStore
from router.openai.limits.limiter import KeyLimiter
from router.openai.limits.memory_counter import MemoryCounter
from router.openai.limits.redis_counter import RedisCounter
from router.openai.ports import OPEN, End, FrontServices, KeyRefused, LimitRefusal, UsageRecord
from router.process.critical_tasks import CriticalTasks
from router.process.openai_services import check_front, open_services
from router.process.opening import Base
from router.process.reloads import Reloads
from router.registry import Registry
from router.telemetry.metrics import Metrics
from support.waiting import eventually

HERE = SocketAddress("127.0.0.1", 8080)
ANYWHERE = SocketAddress("0.0.0.0", 8080)
KEY = new_key()


def settings(*arguments: str) -> Settings:
    needed = ("--stargate-id=r", "--advertise-addr=127.0.0.1:1", "--stargate-discovery-dns-name=localhost")
    return parse([*needed, *arguments], {})


def key_file(path: Path, *entries: KeyEntry) -> str:
    with KeyStore(path).changing() as change:
        change.file = KeyFile(list(entries))
    return f"--openai-keys-file={path}"


def entry(
    name: str = "alice", key: str = KEY, limits: LimitEntry | None = None, models: list[str] | None = None
) -> KeyEntry:
    return KeyEntry(id=name, digest="sha256:" + digest_of(key.encode()).hex(), limits=limits, models=models)


@asynccontextmanager
async def services(
    *arguments: str, address: SocketAddress = HERE, tls: bool = False, as_gateway: bool = False
) -> AsyncIterator[tuple[FrontServices, Base]]:
    metrics, tasks, options = Metrics(), CriticalTasks(), settings(*arguments)
    async with AsyncExitStack() as opened:
        opened.push_async_callback(tasks.close)
        base = Base(
            settings=options,
            metrics=metrics,
            registry=Registry(lambda _key, _count: None, package_settings.registry(options)),
            reloads=Reloads(),
            tasks=tasks,
            opened=opened,
            tracer=None,
            supervisor=None,
        )
        try:
            yield open_services(base, address, tls=tls, as_gateway=as_gateway), base
        finally:
            tasks.begin_stopping()
            tasks.cancel_loops()


# --- who may use it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "address", "told"),
    [
        ((), HERE, "--openai-listen-addr requires --openai-keys-file"),
        (("--openai-open", "--openai-keys-file=k"), HERE, "--openai-open excludes --openai-keys-file"),
        (("--openai-open", "--openai-auth-endpoint=http://h"), HERE, "--openai-open excludes"),
        (("--openai-open",), ANYWHERE, "requires --openai-open-anywhere"),
        (("--openai-open",), SocketAddress("::", 1), "requires --openai-open-anywhere"),
        (("--openai-open",), SocketAddress("10.0.0.1", 1), "requires --openai-open-anywhere"),
    ],
)
def test_a_front_that_nobody_or_everybody_could_use_by_mistake_does_not_start(
    arguments: tuple[str, ...], address: SocketAddress, told: str
) -> None:
    with pytest.raises(StartupError) as refused:
        check_openai_access(settings(*arguments), address)
    assert told in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("address", [HERE, SocketAddress("127.9.9.9", 1), SocketAddress("::1", 1)])
def test_an_open_front_on_the_loopback_starts(address: SocketAddress) -> None:
    check_openai_access(settings("--openai-open"), address)


async def test_an_open_front_anywhere_starts_if_that_is_said() -> None:
    with capture_logs() as logs:
        async with services("--openai-open", "--openai-open-anywhere", address=ANYWHERE) as (found, _):
            caller = found.authenticator.authenticate(None, None)
            assert not isinstance(caller, KeyRefused | asyncio.Future)
            assert caller.key_id == OPEN
    assert logs == []


@pytest.mark.parametrize(
    ("address", "tls", "warns"), [(ANYWHERE, False, True), (ANYWHERE, True, False), (HERE, False, False)]
)
async def test_keys_without_tls_on_an_address_that_others_reach_are_one_warning(
    tmp_path: Path, address: SocketAddress, tls: bool, warns: bool
) -> None:
    with capture_logs() as logs:
        async with services(key_file(tmp_path / "k", entry()), address=address, tls=tls):
            pass
    warnings = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert len(warnings) == warns
    assert not warns or "travel without TLS" in warnings[0]


# --- files that cannot be used -----------------------------------------------------------------------------------------


async def test_a_key_file_that_cannot_be_used_ends_the_start_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    causes = []
    for change in (lambda: None, lambda: path.write_text("{"), lambda: path.chmod(0o600)):
        change()
        with pytest.raises(StartupError) as refused:
            async with services(f"--openai-keys-file={path}"):
                pass
        assert refused.value.message == f"failed to read the file of API keys: {path}"
        assert refused.value.options == (f"--openai-keys-file={path}",)
        causes.append(refused.value.causes[0])
    assert "No such file" in causes[0]
    assert "chmod 600" in causes[1]
    assert "truncated" in causes[2]


async def test_a_usage_log_that_cannot_be_opened_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="failed to open the usage log"):
        async with services("--openai-open", f"--openai-usage-log={tmp_path}/no/such/file"):
            pass


async def test_urls_that_cannot_be_used_end_the_start_without_showing_a_password() -> None:
    with pytest.raises(StartupError) as refused:
        async with services("--openai-open", "--openai-redis-url=redis://:hunter2@h"):
            pass
    assert refused.value.message == "--openai-redis-url cannot be used"
    assert "hunter2" not in refused.value.report()
    with pytest.raises(StartupError, match="failed to use the NVCF API"):
        async with services("--openai-auth-endpoint=h:1"):
            pass


# --- several processes -------------------------------------------------------------------------------------------------


def test_several_processes_with_limits_and_without_redis_do_not_start(tmp_path: Path) -> None:
    limited = key_file(tmp_path / "limited", entry(limits=LimitEntry(requests="1-M")))
    unlimited = key_file(tmp_path / "unlimited", entry())
    for arguments in ((limited,), ("--openai-auth-endpoint=http://h",)):
        with pytest.raises(StartupError) as refused:
            check_front(settings(*arguments), HERE, several=True)
        assert "limits of several processes need --openai-redis-url" in refused.value.message
        assert refused.value.causes == ()
        check_front(settings(*arguments), HERE, several=False)
        check_front(settings(*arguments, "--openai-redis-url=redis://h"), HERE, several=True)
    check_front(settings(unlimited), HERE, several=True)
    check_front(settings("--openai-open"), HERE, several=True)


# --- what it is given --------------------------------------------------------------------------------------------------


RECORD = UsageRecord(
    request_id="r",
    key_id="alice",
    path="/v1/embeddings",
    routing_key=None,
    model="m",
    registered=True,
    stream=False,
    status=200,
    code=None,
    end=End.COMPLETE,
    estimated_input_tokens=1,
    usage=None,
    output_seen=0,
    first_token_ms=None,
    duration_ms=1.0,
)


async def test_a_changed_key_file_is_taken_up_by_itself_and_by_a_reload(tmp_path: Path) -> None:
    path, second = tmp_path / "k", new_key()
    async with services(key_file(path, entry()), "--openai-keys-poll-ms=5") as (found, base):

        def known(key: str) -> bool:
            return not isinstance(found.authenticator.authenticate(f"Bearer {key}".encode(), None), KeyRefused)

        assert known(KEY)
        key_file(path, entry("bob", second))
        await eventually(lambda: known(second))
        assert not known(KEY)
    async with services(key_file(path, entry()), "--openai-keys-poll-ms=3600000") as (found, base):
        key_file(path, entry("bob", second))
        base.reloads.request()
        await eventually(lambda: known(second))


@pytest.mark.parametrize(("status", "code"), [("404", "model_not_found"), ("403", "permission_denied")])
async def test_the_answer_to_a_key_without_the_right_is_as_set(tmp_path: Path, status: str, code: str) -> None:
    arguments = (key_file(tmp_path / "k", entry(models=["m"])), f"--openai-forbidden-status={status}")
    async with services(*arguments) as (found, _):
        caller = found.authenticator.authenticate(f"Bearer {KEY}".encode(), None)
        assert not isinstance(caller, KeyRefused | asyncio.Future)
        refused = found.authenticator.authorize(caller, None, "other", "other")
        assert isinstance(refused, KeyRefused)
        assert (str(refused.status), refused.code) == (status, code)


async def test_limits_are_counted_in_memory_or_in_redis(tmp_path: Path) -> None:
    keys = key_file(tmp_path / "k", entry(limits=LimitEntry(requests="1-M")))
    async with services(keys) as (found, _):
        assert isinstance(found.limiter, KeyLimiter)
        assert isinstance(found.limiter._counter, MemoryCounter)
        assert isinstance(found.affinity, ScopedAffinity)
    nobody = ("--openai-redis-url=redis://127.0.0.1:1", "--openai-redis-timeout-ms=500")
    for down in ("open", "closed"):
        async with services(keys, *nobody, f"--openai-redis-down={down}", as_gateway=True) as (found, _):
            assert isinstance(found.limiter, KeyLimiter)
            assert isinstance(found.limiter._counter, RedisCounter)
            assert isinstance(found.affinity, GatewayAffinity)
            caller = found.authenticator.authenticate(f"Bearer {KEY}".encode(), None)
            assert not isinstance(caller, KeyRefused | asyncio.Future)
            began = time.monotonic()
            admitted = found.limiter.admit(caller, None, "m", 1, 1)
            result = await admitted if isinstance(admitted, asyncio.Future) else admitted
            assert isinstance(result, LimitRefusal) == (down == "closed")
            assert time.monotonic() - began < 5


async def test_an_api_is_asked_with_the_credential_of_the_secrets_file(tmp_path: Path) -> None:
    for more in (
        (),
        (f"--secrets-path={tmp_path}/s",),
        (f"--secrets-path={tmp_path}/s", "--oauth2-provider-host=http://h"),
    ):
        arguments = ("--openai-auth-endpoint=http://127.0.0.1:1", "--openai-auth-timeout-ms=300", *more)
        async with services(*arguments) as (found, _):
            caller = found.authenticator.authenticate(b"Bearer nvapi-x", None)
            assert not isinstance(caller, KeyRefused | asyncio.Future)
            asked = found.authenticator.authorize(caller, "f", "m", "f/m")
            assert isinstance(asked, asyncio.Future)
            refused = await asked
            assert isinstance(refused, KeyRefused)
            assert refused.status in (503, 504)


async def test_usage_is_counted_and_logged(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    async with services("--openai-open", f"--openai-usage-log={path}") as (found, base):
        found.usage.record(RECORD)
        assert base.metrics.openai_requests_total.value(("alice", "", "m", "200")) == 1
        assert base.metrics.log_lines_dropped_total.value(("usage_log",)) == 0
    assert path.read_text().count("\n") == 1
    async with services("--openai-open") as (found, base):
        found.usage.record(RECORD)
        assert base.metrics.openai_requests_total.value(("alice", "", "m", "200")) == 1


def test_the_words_of_two_options_are_checked() -> None:
    with pytest.raises(ValueRefusedError, match="expected '403' or '404'"):
        forbidden_status("401")
    with pytest.raises(ValueRefusedError, match="expected 'open' or 'closed'"):
        open_or_closed("ajar")
