"""The file of API keys: what it says, what is refused and where, its mode, and how it is replaced."""

import os
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from router.openai.keys.key_file import KEY_FILE, KeyEntry, KeyFile, KeyFileError, decode, encode
from router.openai.keys.key_format import digest_of, new_key
from router.openai.keys.key_store import KeyStore, read_key_file
from router.openai.limits.limit_set import LimitSet
from router.openai.limits.rule import Rule, Unit
from tunnel_protocol.small_file import SmallFileError

DIGEST = "sha256:" + "ab" * 32


def entry(**members: object) -> str:
    text = ", ".join(f'"{name}": {value}' for name, value in {"id": '"a"', "digest": f'"{DIGEST}"', **members}.items())
    return '{"keys": [{' + text + "}]}"


def test_a_key_has_256_random_bits_and_a_recognisable_prefix() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith("sk-lrr-")
        assert len(bytes.fromhex(key.removeprefix("sk-lrr-"))) == 32


def test_a_file_says_rights_limits_and_priority() -> None:
    document = entry(
        priority=3,
        routing_keys='["tenant", ""]',
        models='["llama-*", "exact"]',
        limits='{"requests": "60-M, 1000-D", "tokens": "5-S", "concurrency": 2}',
        model_limits='{"exact": {"tokens": "7-H"}}',
        expires='"2030-01-01T00:00:00Z"',
        note='"for tests"',
    )
    ((digest, caller),) = decode(document.encode()).callers().items()
    assert digest == b"\xab" * 32
    assert caller.key_id == "a"
    assert caller.priority == 3
    assert caller.expires_at == 1893456000
    assert caller.limits == LimitSet((Rule(60, Unit.MINUTE), Rule(1000, Unit.DAY)), (Rule(5, Unit.SECOND),), 2)
    assert caller.model_limits == {"exact": LimitSet(tokens=(Rule(7, Unit.HOUR),))}
    assert caller.may_use("tenant", "llama-8b")
    assert caller.may_use(None, "exact")
    assert not caller.may_use("other", "exact")
    assert not caller.may_use(None, "exact-not")
    assert not caller.may_use(None, "my-llama-8b")


def test_without_lists_a_key_may_use_everything_and_with_empty_ones_nothing() -> None:
    (everything,) = decode(entry().encode()).callers().values()
    assert everything.may_use(None, "m")
    assert everything.may_use("k", "m")
    (nothing,) = decode(entry(models="[]").encode()).callers().values()
    assert not nothing.may_use(None, "m")


@pytest.mark.parametrize(
    ("document", "reason", "place"),
    [
        (b"", "Input data was truncated", "the end"),
        (b'{"keys": [\n  {"id": "a",]\n', "malformed", "line 2 column 14"),
        (b'{"keys": []} x', "trailing", "line 1 column 15"),
        (b"[]", "Expected `object`, got `array`", "$"),
        (b"{}", "missing required field `keys`", "$"),
        (b'{"keys": [], "kyes": []}', "unknown field `kyes`", "$"),
        (b'{"keys": [], "version": 2}', "<= 1", "$.version"),
        (entry(modles='["m"]').encode(), "unknown field `modles`", "$.keys[0]"),
        (entry(id='"a b"').encode(), "regex", "$.keys[0].id"),
        (entry(id='"a\\n"').encode(), "regex", "$.keys[0].id"),
        (entry(id='"' + "a" * 65 + '"').encode(), "regex", "$.keys[0].id"),
        (entry(digest='"sk-lrr-00"').encode(), "regex", "$.keys[0].digest"),
        (entry(priority="-1").encode(), ">= 0", "$.keys[0].priority"),
        (entry(expires='"tomorrow"').encode(), "RFC3339", "$.keys[0].expires"),
        (entry(expires='"2030-01-01T00:00:00"').encode(), "timezone", "$.keys[0].expires"),
        (entry(limits='{"tokens": "5-m"}').encode(), "`tokens`: '5-m' is not <number>-<S|M|H|D|W>", "$.keys[0].limits"),
        (entry(limits='{"requests": "0-M"}').encode(), "`requests`: 0 is not in 1..=", "$.keys[0].limits"),
        (entry(limits='{"concurrency": 0}').encode(), ">= 1", "$.keys[0].limits.concurrency"),
        (b'{"keys": "\xff"}', "", ""),
        (b'{"keys": ' + b"[" * 100_000, "", ""),
    ],
)
def test_what_is_wrong_is_said_with_its_place(document: bytes, reason: str, place: str) -> None:
    with pytest.raises(KeyFileError) as refused:
        decode(document)
    assert reason in refused.value.reason
    assert place in refused.value.place


def test_two_keys_with_one_id_or_one_digest_are_refused() -> None:
    other = KeyEntry(id="b", digest="sha256:" + "cd" * 32)
    with pytest.raises(KeyFileError, match=r"second key with the id 'b' at \$\.keys\[1\]\.id"):
        decode(encode(KeyFile([other, KeyEntry(id="b", digest=DIGEST)])))
    with pytest.raises(KeyFileError, match=r"same key at \$\.keys\[1\]\.digest"):
        decode(encode(KeyFile([other, KeyEntry(id="c", digest=other.digest)])))


def test_the_file_is_bounded_in_bytes_and_keys() -> None:
    assert KEY_FILE.bytes is not None
    assert KEY_FILE.pieces is not None
    with pytest.raises(KeyFileError, match="larger than"):
        decode(b" " * (KEY_FILE.bytes + 1))
    keys = [KeyEntry(id=f"k{i}", digest="sha256:" + i.to_bytes(32, "big").hex()) for i in range(KEY_FILE.pieces)]
    assert len(decode(encode(KeyFile(keys))).keys) == KEY_FILE.pieces
    with pytest.raises(KeyFileError, match=r"length <= 10000 at \$\.keys"):
        decode(encode(KeyFile([*keys, KeyEntry(id="one-more", digest=DIGEST)])))


def write(path: Path, mode: int, content: str = '{"keys": []}') -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_of_its_owner_alone_is_read(tmp_path: Path, mode: int) -> None:
    assert read_key_file(write(tmp_path / "keys.json", mode)) == b'{"keys": []}'


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666])
def test_a_file_that_others_have_access_to_is_refused_with_the_command_that_helps(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "keys.json", mode)
    with pytest.raises(SmallFileError, match=rf"mode {mode:04o} gives others access to it; run: chmod 600 {path}"):
        read_key_file(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_mounted_secret_of_another_owner_may_be_readable_by_its_group(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.json", 0o440)
    os.chown(path, 12345, 12345)
    assert read_key_file(path) == b'{"keys": []}'
    path.chmod(0o460)
    with pytest.raises(SmallFileError, match="gives others access"):
        read_key_file(path)


def add(store: KeyStore, name: str) -> None:
    with store.changing() as change:
        change.file = KeyFile([*change.file.keys, KeyEntry(id=name, digest="sha256:" + digest_of(name.encode()).hex())])


def test_a_change_replaces_the_file_as_a_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    store = KeyStore(path)
    add(store, "one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("rb") as opened_before:
        add(store, "two")
        assert [one.id for one in decode(opened_before.read()).keys] == ["one"]
    assert [one.id for one in store.read().keys] == ["one", "two"]
    assert [one.name for one in tmp_path.iterdir()] == ["keys.json"]


def test_the_target_of_a_link_is_replaced_and_not_the_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "keys.json"
    link.symlink_to(tmp_path / "real" / "keys.json")
    add(KeyStore(link), "one")
    assert link.is_symlink()
    assert [one.id for one in decode((tmp_path / "real" / "keys.json").read_bytes()).keys] == ["one"]


def test_changes_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    threads = [threading.Thread(target=add, args=(KeyStore(path), f"key-{i}")) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.id for one in KeyStore(path).read().keys} == {f"key-{i}" for i in range(20)}


def test_a_failed_change_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    store = KeyStore(path)
    add(store, "one")
    before = path.read_bytes()
    with pytest.raises(RuntimeError), store.changing():
        raise RuntimeError
    with pytest.raises(KeyFileError, match="larger than"), store.changing() as change:
        change.file = KeyFile(
            [
                KeyEntry(id=f"k{i}", digest=DIGEST, models=["m" * 500] * 100)
                for i in range((KEY_FILE.bytes or 0) // 50_000 + 1)
            ]
        )
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["keys.json"]


def test_a_file_that_is_broken_or_in_no_directory_is_not_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.json", 0o600, "{")
    with pytest.raises(KeyFileError):
        add(KeyStore(path), "one")
    assert path.read_text() == "{"
    with pytest.raises(SmallFileError, match="No such file"):
        add(KeyStore(tmp_path / "missing" / "keys.json"), "one")


def test_errors_of_the_system_while_the_file_is_read_or_replaced_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "keys.json", 0o600)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(SmallFileError, match="No space left on device"):
            add(KeyStore(path), "one")
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkstemp", fail)
        with pytest.raises(SmallFileError, match="No space left on device"):
            add(KeyStore(path), "one")
    assert path.read_text() == '{"keys": []}'
    assert [one.name for one in tmp_path.iterdir()] == ["keys.json"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", fail)
        with pytest.raises(SmallFileError, match="No space left on device"):
            read_key_file(path)
