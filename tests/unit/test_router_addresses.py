"""Addresses of routers with and without scheme, and the certificates a worker trusts on gRPC connections."""

import pytest

from certs import make_self_signed
from stargate_client.discovery import _routers
from stargate_client.router_address import GrpcAddress, RouterAddress, parse_grpc_address
from stargate_client.router_trust import TrustError, grpc_trust
from stargate_client.settings import parse
from tunnel_protocol.control import stargate_pb2

BASE = ("--upstream-http-base-url=http://127.0.0.1:1/", "--backend-connectivity=reverse", "--quic-insecure")
OPTION = "--grpc-tls-ca-cert-path"


@pytest.mark.parametrize(
    ("text", "target", "tls"),
    [
        ("router:50071", "router:50071", False),
        ("router:443", "router:443", False),
        (" http://router:1/ ", "router:1", False),
        ("https://router:50071", "router:50071", True),
        ("HTTPS://[::1]:5/", "[::1]:5", True),
        ("https://name:secret@router:1/path?query#part", "router:1", True),
        ("unix:/run/router", "unix:/run/router", False),
        ("  ", "", False),
        ("https://", "", True),
    ],
)
def test_the_scheme_decides_on_tls(text, target, tls):
    assert parse_grpc_address(text) == GrpcAddress(target, tls)


@pytest.mark.parametrize(
    ("target", "found"),
    [("a:1", ("a", 1)), ("[::1]:65535", ("::1", 65535)), ("[::1]", ("::1", 443)), ("a.example", ("a.example", 443))],
)
def test_host_and_port(target, found):
    assert GrpcAddress(target, tls=True).host_and_port() == found


@pytest.mark.parametrize("target", ["", ":1", "a:", "a:0", "a:65536", "a:1x", "a:٣", "a:" + "1" * 5000])
def test_what_is_no_host_and_port_is_an_error(target):
    with pytest.raises(ValueError, match="expected a host and a port"):
        GrpcAddress(target, tls=True).host_and_port()


def told(**fields):
    return _routers(stargate_pb2.WatchStargatesResponse(stargates=[stargate_pb2.StargateInfo(**fields)]))


def test_a_router_is_dialled_where_it_says_and_called_by_its_own_name():
    dial = GrpcAddress("front:443", tls=True)
    assert told(stargate_id="r", advertise_addr="r.svc:5", grpc_pylon_dial_addr="https://front:443") == [
        RouterAddress("r.svc:5", dial)
    ]
    assert told(stargate_id="r", advertise_addr="r.svc:5") == [RouterAddress("r.svc:5", GrpcAddress("r.svc:5"))]
    assert told(stargate_id="https://r:5") == [RouterAddress("r:5", GrpcAddress("r:5", tls=True))]
    assert told(advertise_addr=" ", grpc_pylon_dial_addr="https://front:443") == []


# --- command line ----------------------------------------------------------------------------------------------------


def test_the_address_of_the_command_line_has_a_scheme_or_none():
    assert parse([*BASE, "--stargate-address=https://front:50071"], {}).stargate_address == GrpcAddress(
        "front:50071", True
    )
    assert parse(BASE, {}).stargate_address == GrpcAddress("127.0.0.1:50071")


@pytest.mark.parametrize("words", ["--stargate-address=https://", "--stargate-address=a:b", f"{OPTION}= "])
def test_unusable_values_are_usage_errors(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse([*BASE, words], {})
    assert ended.value.code == 2
    assert "https://host:port" in (told := capsys.readouterr().err) or "path of a file" in told


def test_the_trust_of_grpc_connections_is_an_option_and_a_variable(tmp_path):
    found = parse(BASE, {"STARGATE_GRPC_TLS_CA_CERT_PATH": "/a"})
    assert str(found.grpc_tls_ca_cert_path) == "/a"
    assert str(parse([*BASE, f"{OPTION}=/b"], {"STARGATE_GRPC_TLS_CA_CERT_PATH": "/a"}).grpc_tls_ca_cert_path) == "/b"


# --- trust -----------------------------------------------------------------------------------------------------------


def test_a_bundle_adds_to_the_roots_of_the_system(tmp_path, monkeypatch):
    system, own = tmp_path / "system.pem", tmp_path / "own.pem"
    system.write_bytes(make_self_signed(["system"]).cert_pem)
    own.write_bytes(make_self_signed(["one"]).cert_pem + b"\n# another\n" + make_self_signed(["two"]).cert_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    assert grpc_trust(None, OPTION).cert_store_stats()["x509"] == 1
    assert grpc_trust(own, OPTION).cert_store_stats()["x509"] == 3


GOOD = make_self_signed(["one"]).cert_pem


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "contains no certificates"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "parse"),
        (GOOD + b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n", "parse|malformed"),
        (GOOD + GOOD[: len(GOOD) // 2], "parse|malformed"),
        (GOOD + GOOD.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE"), "malformed"),
        (b"#" * ((1 << 20) + 1), "exceeds"),
    ],
)
def test_an_unusable_bundle_is_refused_with_option_file_and_reason(tmp_path, content, reason):
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_bytes(content)
    with pytest.raises(TrustError, match=reason) as refused:
        grpc_trust(bundle, OPTION)
    assert str(refused.value).startswith(f"{OPTION}: {bundle} cannot be used: ")
