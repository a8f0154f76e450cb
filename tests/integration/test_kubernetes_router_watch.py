"""The list of targets follows an API server with the semantics of Kubernetes."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kubernetes_router.backoff import Backoff
from kubernetes_router.kubernetes_api import FILES, PAGE, ApiAddress, ApiError, KubernetesApi
from kubernetes_router.metrics import Metrics
from kubernetes_router.slice_events import EVENT
from kubernetes_router.slices import SLICES, PortNames
from kubernetes_router.targets import HostnameTemplate, TargetList
from kubernetes_router.watcher import SliceWatcher
from support.kubernetes_api import TOKEN, FakeKubernetesApi
from support.kubernetes_objects import endpoint, endpoint_slice
from support.waiting import eventually

FIRST = endpoint_slice("a", endpoint("router-0", "10.0.0.1"))
SECOND = endpoint_slice("b", endpoint("router-1", "10.0.0.2"))


class Quick(Backoff):
    """Pauses that a test can wait for."""

    def next_s(self) -> float:
        return 0.01


class Following:
    """A watcher of a fake API server."""

    def __init__(self, folder: Path) -> None:
        self.api = FakeKubernetesApi(folder)
        self.targets = TargetList(HostnameTemplate("{pod_name}", "nvcf"))
        self.metrics = Metrics()
        self.published: list[list[str]] = []
        self.targets.on_changed(lambda: self.published.append(self.ips))
        self._task: asyncio.Task[None] | None = None

    @property
    def ips(self) -> list[str]:
        return [target.ip for target in self.targets.sorted_by_pod_name()]

    def client(self) -> KubernetesApi:
        address = ApiAddress(self.api.url, str(self.api.token_path), str(self.api.ca_path))
        return KubernetesApi(address, namespace="nvcf", service="routers")

    def start(self) -> None:
        names = PortNames(grpc="grpc", quic="quic")
        watcher = SliceWatcher(self.client(), self.targets, names, self.metrics, backoff=Quick())
        self._task = asyncio.create_task(watcher.run())

    async def started(self) -> None:
        self.start()
        await eventually(lambda: self.api.watching == 1)

    async def becomes(self, *ips: str) -> None:
        await eventually(lambda: self.ips == list(ips))

    def failures(self, reason: str) -> float:
        return self.metrics.kubernetes_failures_total.value((reason,))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.api.stop()


@pytest.fixture
async def following(tmp_path: Path) -> AsyncGenerator[Following]:
    found = Following(tmp_path)
    await found.api.start()
    yield found
    await found.stop()


async def test_the_list_is_published_once_complete_and_changes_follow(following: Following) -> None:
    api = following.api
    await api.apply(FIRST)
    await api.apply(SECOND)
    await following.started()
    assert following.published == [["10.0.0.1", "10.0.0.2"]]
    await api.apply(endpoint_slice("b", endpoint("router-1", "10.0.0.3")))
    await following.becomes("10.0.0.1", "10.0.0.3")
    await api.delete("a")
    await following.becomes("10.0.0.3")
    await api.apply(endpoint_slice("c", endpoint("router-1", "10.0.0.4")))
    await following.becomes("10.0.0.4")


async def test_an_empty_list_is_a_list(following: Following) -> None:
    await following.started()
    assert following.targets.complete
    assert not following.targets.ready


async def test_slices_of_other_services_do_not_count(following: Following) -> None:
    await following.api.apply(endpoint_slice("x", endpoint("other", "10.9.9.9"), service="other"))
    await following.api.apply(FIRST)
    await following.started()
    assert following.ips == ["10.0.0.1"]


async def test_a_long_list_comes_in_pages_and_is_published_once(following: Following) -> None:
    count = 2 * (PAGE.pieces or 0) + 1
    for index in range(count):
        await following.api.apply(endpoint_slice(f"s{index}", endpoint(f"router-{index}", "10.0.0.1")))
    await following.started()
    assert [len(ips) for ips in following.published] == [count]
    assert len(following.api.requests) == 4


async def test_a_watch_that_ends_goes_on_from_the_last_version(following: Following) -> None:
    api = following.api
    await api.apply(FIRST)
    await following.started()
    await api.apply(SECOND)
    await following.becomes("10.0.0.1", "10.0.0.2")
    marked = await api.bookmark()
    await api.apply(endpoint_slice("b", endpoint("router-1", "10.0.0.3")))
    await following.becomes("10.0.0.1", "10.0.0.3")
    api.end_watches()
    await eventually(lambda: len(api.versions_watched()) == 2)
    assert int(api.versions_watched()[1]) > int(marked)
    assert api.lists() == 1


async def test_the_version_of_a_bookmark_is_used(following: Following) -> None:
    api = following.api
    await following.started()
    marked = await api.bookmark()
    await asyncio.sleep(0)
    api.end_watches()
    await eventually(lambda: len(api.versions_watched()) == 2)
    assert api.versions_watched()[1] == marked


async def test_what_was_missed_while_a_connection_was_down_arrives_later(following: Following) -> None:
    api = following.api
    await api.apply(FIRST)
    await following.started()
    api.drop_watches()
    await api.apply(SECOND)
    await following.becomes("10.0.0.1", "10.0.0.2")
    assert api.lists() == 1


@pytest.mark.parametrize("how", ["compacted", "too slow"])
async def test_a_version_that_is_gone_leads_to_a_new_list_that_replaces_the_old_one(
    following: Following, how: str
) -> None:
    api = following.api
    await api.apply(FIRST)
    await api.apply(SECOND)
    await following.started()
    api.refusal = lambda query: 500 if "watch" in query else None
    if how == "compacted":
        api.drop_watches()
        await eventually(lambda: following.failures("status") > 0)
    await api.delete("a")
    api.compact()
    api.refusal = lambda _query: None
    if how == "too slow":
        await api.end_watches_as_gone()
    await following.becomes("10.0.0.2")
    await eventually(lambda: api.lists() == 2)
    assert following.failures("gone") >= 1
    assert [] not in following.published


async def test_an_http_status_410_means_the_same(following: Following) -> None:
    api = following.api
    await api.apply(FIRST)
    await following.started()
    api.refusal = lambda query: 410 if "watch" in query and api.lists() < 2 else None
    api.drop_watches()
    await eventually(lambda: api.lists() == 2 and api.opened == 2)
    assert following.ips == ["10.0.0.1"]


async def test_errors_keep_the_last_list_and_are_told_once(following: Following) -> None:
    api = following.api
    await api.apply(FIRST)
    with capture_logs() as lines:
        await following.started()
        api.refusal = lambda _query: 403
        api.drop_watches()
        await eventually(lambda: following.failures("status_403") >= 3)
        assert following.ips == ["10.0.0.1"]
        api.refusal = lambda _query: None
        await api.apply(SECOND)
        await following.becomes("10.0.0.1", "10.0.0.2")
    told = [line for line in lines if line["event"] == "cannot follow EndpointSlices; the last list stays"]
    assert [line["reason"] for line in told if line["reason"] != "connection"] == ["status_403"]
    assert "get, list and watch" in told[-1]["hint"]
    assert "EndpointSlices are followed again" in [line["event"] for line in lines]
    assert TOKEN not in str(lines)
    assert str(api.token_path) not in str(lines)


async def test_a_token_that_appears_late_and_one_that_changes_are_used(following: Following) -> None:
    api = following.api
    await api.apply(FIRST)
    api.token_path.unlink()
    with capture_logs() as lines:
        following.start()
        await eventually(lambda: following.failures("credentials") > 0)
        api.token_path.write_text(TOKEN)
        await following.becomes("10.0.0.1")
    assert str(api.token_path) not in str(lines)
    await eventually(lambda: api.watching == 1)
    api.token = "another"  # noqa: S105 - of a server of tests
    api.end_watches()
    await eventually(lambda: following.failures("status_401") > 0)
    api.token_path.write_text("another")
    await api.apply(SECOND)
    await following.becomes("10.0.0.1", "10.0.0.2")


@pytest.mark.parametrize("token", ["line\none", "caf\u00e9", ""])
async def test_a_token_that_is_none_is_not_shown(following: Following, token: str) -> None:
    following.api.token_path.write_text(token)
    with pytest.raises(ApiError) as caught:
        await following.client().list()
    assert caught.value.reason in {"connection", "status_401"}
    assert not token or token not in str(caught.value)


async def test_a_server_with_another_certificate_is_not_asked(following: Following, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = FakeKubernetesApi(tmp_path / "other")
    client = KubernetesApi(
        ApiAddress(following.api.url, str(following.api.token_path), str(other.ca_path)), namespace="nvcf", service="x"
    )
    with pytest.raises(ApiError, match="the certificate of the API is not trusted"):
        await client.list()
    assert following.api.requests == []


@pytest.mark.parametrize("bundle", ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
async def test_an_unusable_trust_bundle_is_told(following: Following, bundle: str) -> None:
    following.api.ca_path.write_text(bundle)
    with pytest.raises(ApiError, match="the trust bundle has no usable certificate"):
        await following.client().list()


async def test_a_server_that_is_not_there_is_told(following: Following) -> None:
    client = KubernetesApi(
        ApiAddress("https://127.0.0.1:9", str(following.api.token_path), str(following.api.ca_path)),
        namespace="nvcf",
        service="x",
    )
    with pytest.raises(ApiError, match="Cannot connect to host") as caught:
        await client.list()
    assert caught.value.reason == "connection"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"items": [{}]}', b""])
async def test_what_is_no_list_is_refused(following: Following, body: bytes) -> None:
    following.api.body = body
    with pytest.raises(ApiError, match="unexpected content"):
        await following.client().list()


async def test_a_page_is_bounded(following: Following) -> None:
    following.api.body = b" " * ((PAGE.bytes or 0) + 1)
    with pytest.raises(ApiError, match="a page of more than"):
        await following.client().list()


async def test_credentials_are_bounded(following: Following) -> None:
    following.api.token_path.write_bytes(b"x" * ((FILES.bytes or 0) + 1))
    with pytest.raises(ApiError, match="the service account token cannot be read: larger than"):
        await following.client().list()


async def test_an_event_is_bounded(following: Following) -> None:
    following.api.body = b" " * ((EVENT.bytes or 0) + 1)
    with pytest.raises(ApiError, match="an event of more than"):
        await anext(following.client().watch("1"))


async def test_unknown_and_empty_events_are_ignored_and_broken_ones_end_the_watch(following: Following) -> None:
    api = following.api
    await api.apply(FIRST)
    await following.started()
    await api.send("SOMETHING_NEW", {"anything": 1})
    await api.apply(SECOND)
    await following.becomes("10.0.0.1", "10.0.0.2")
    await api.send("MODIFIED", {"metadata": {}})
    await eventually(lambda: following.failures("invalid") == 1 and api.opened == 2 and api.watching == 1)
    await api.send("ERROR", {"code": 500})
    await eventually(lambda: following.failures("status") == 1)
    assert following.ips == ["10.0.0.1", "10.0.0.2"]


async def test_too_many_slices_keep_the_last_list(following: Following) -> None:
    api = following.api
    await api.apply(FIRST)
    await following.started()
    for index in range(SLICES.pieces or 0):
        await api.apply(endpoint_slice(f"s{index}"))
    await eventually(lambda: following.failures("too_many") > 0)
    await api.delete("s0")
    await api.apply(SECOND)
    assert following.ips == ["10.0.0.1"]
