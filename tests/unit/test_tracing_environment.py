"""`OTEL_*` variables: what is read from them, and that no value reaches the SDK that it cannot use."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs import make_self_signed
from router.telemetry.otlp.environment import CERTIFICATE_FILE, GRPC, HTTP, TracingEnvironment, read_environment

URL = "http://collector:4317"


def read(endpoint: str | None = URL, **variables: str) -> TracingEnvironment:
    return read_environment({f"OTEL_{name}": value for name, value in variables.items()}, endpoint)


def test_without_variables_everything_is_exported_by_grpc() -> None:
    found = read()
    assert (found.endpoint, found.protocol, found.share, found.parent_based) == (URL, GRPC, 1.0, True)
    assert (found.disabled, dict(found.headers), found.refused) == (False, {}, ())


def test_the_endpoint_of_the_command_line_wins() -> None:
    both = {"EXPORTER_OTLP_ENDPOINT": "http://general:1", "EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:1"}
    assert read(URL, **both).endpoint == URL
    assert "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" not in read(URL, **both).variables
    assert read("http://general:1", **both).endpoint == "http://traces:1"
    assert read(None, **both).endpoint == "http://traces:1"


def test_an_unusable_endpoint_is_named_as_it_was_given() -> None:
    assert [one.variable for one in read("carrier pigeon").refused] == ["--otel-endpoint"]
    (refused,) = read("carrier pigeon", EXPORTER_OTLP_ENDPOINT="carrier pigeon").refused
    assert refused.variable == "OTEL_EXPORTER_OTLP_ENDPOINT"
    assert read("carrier pigeon").endpoint is None


def test_the_endpoint_is_shown_without_its_password() -> None:
    assert read("https://user:secret@collector:4318/otlp").shown_endpoint == "https://collector:4318/otlp"
    assert read("collector:4317").shown_endpoint == "collector:4317"
    assert read(None).shown_endpoint == ""


def test_an_endpoint_with_the_path_of_traces_is_complete() -> None:
    found = read("https://collector/otlp/v1/traces", EXPORTER_OTLP_PROTOCOL="http/protobuf")
    assert found.protocol == HTTP
    assert found.variables["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "https://collector/otlp/v1/traces"


def test_a_variable_of_the_signal_wins() -> None:
    found = read(
        EXPORTER_OTLP_PROTOCOL="grpc",
        EXPORTER_OTLP_TRACES_PROTOCOL="HTTP/protobuf",
        EXPORTER_OTLP_HEADERS="a=b",
        EXPORTER_OTLP_TRACES_HEADERS="X-Key=one%20two, other = 3",
    )
    assert found.protocol == HTTP
    assert found.headers == {"x-key": "one two", "other": "3"}


@pytest.mark.parametrize(
    ("name", "argument", "share", "parent_based"),
    [
        ("always_on", None, 1.0, False),
        ("always_off", None, 0.0, False),
        ("parentbased_always_off", None, 0.0, True),
        ("traceidratio", "0.25", 0.25, False),
        ("ParentBased_TraceIdRatio", "0.01", 0.01, True),
        ("parentbased_traceidratio", None, 1.0, True),
        ("parentbased_traceidratio", "half", 1.0, True),
        ("parentbased_always_on", "0.25", 1.0, True),
        ("some_of_them", "0.25", 1.0, True),
    ],
)
def test_samplers(name: str, argument: str | None, share: float, parent_based: bool) -> None:
    given = {"TRACES_SAMPLER": name} | ({} if argument is None else {"TRACES_SAMPLER_ARG": argument})
    found = read(**given)
    assert (found.share, found.parent_based) == (share, parent_based)


@pytest.mark.parametrize(
    "variable", [{"SDK_DISABLED": "TRUE"}, {"SDK_DISABLED": " true "}, {"TRACES_EXPORTER": "none"}]
)
def test_export_can_be_switched_off(variable: dict[str, str]) -> None:
    assert read(**variable).disabled


UNUSABLE = [
    ("SDK_DISABLED", "perhaps"),
    ("TRACES_EXPORTER", "zipkin"),
    ("TRACES_SAMPLER", "jaeger_remote"),
    ("TRACES_SAMPLER_ARG", "-1"),
    ("TRACES_SAMPLER_ARG", "nan"),
    ("TRACES_SAMPLER_ARG", "1.1"),
    ("RESOURCE_ATTRIBUTES", "a=b,c"),
    ("RESOURCE_ATTRIBUTES", "=b"),
    ("RESOURCE_ATTRIBUTES", "a=\udcff"),
    ("SERVICE_NAME", "\udcff"),
    ("BSP_MAX_QUEUE_SIZE", "0"),
    ("BSP_MAX_QUEUE_SIZE", "-5"),
    ("BSP_MAX_QUEUE_SIZE", "many"),
    ("BSP_MAX_QUEUE_SIZE", "9" * 30),
    ("BSP_MAX_EXPORT_BATCH_SIZE", "0"),
    ("BSP_MAX_EXPORT_BATCH_SIZE", "4096"),
    ("BSP_SCHEDULE_DELAY", "1.5"),
    ("BSP_EXPORT_TIMEOUT", "\u0663"),
    ("SPAN_ATTRIBUTE_COUNT_LIMIT", "x"),
    ("ATTRIBUTE_VALUE_LENGTH_LIMIT", "-1"),
    ("EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector"),
    ("EXPORTER_OTLP_TRACES_ENDPOINT", "http://"),
    ("EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:port"),
    ("EXPORTER_OTLP_TRACES_ENDPOINT", "http://[::1"),
    ("EXPORTER_OTLP_TRACES_ENDPOINT", "http://a b"),
    ("EXPORTER_OTLP_PROTOCOL", "http/json"),
    ("EXPORTER_OTLP_TIMEOUT", "soon"),
    ("EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
    ("EXPORTER_OTLP_TIMEOUT", "inf"),
    ("EXPORTER_OTLP_COMPRESSION", "zip"),
    ("EXPORTER_OTLP_INSECURE", "1"),
    ("EXPORTER_OTLP_HEADERS", "secret"),
    ("EXPORTER_OTLP_HEADERS", "b\xe4d=secret"),
    ("EXPORTER_OTLP_HEADERS", "key-bin=secret"),
    ("EXPORTER_OTLP_HEADERS", "key=very%0asecret"),
    ("EXPORTER_OTLP_CERTIFICATE", "/no/such/file"),
    ("EXPORTER_OTLP_CERTIFICATE", "/dev/zero"),
    ("EXPORTER_OTLP_CERTIFICATE", "/"),
    ("EXPORTER_OTLP_CLIENT_CERTIFICATE", "/no/such/file"),
]


@pytest.mark.parametrize(("name", "value"), UNUSABLE)
def test_an_unusable_value_is_named_and_left_out(name: str, value: str) -> None:
    found = read(None, EXPORTER_OTLP_ENDPOINT=URL, **{name: value})
    (refused,) = found.refused
    assert refused.variable == f"OTEL_{name}"
    assert "secret" not in refused.reason
    assert f"OTEL_{name}" not in found.variables
    assert (found.endpoint, found.protocol, found.share, found.disabled) == (URL, GRPC, 1.0, False)


def test_a_certificate_file_that_is_too_large_is_unusable(tmp_path: Path) -> None:
    file = tmp_path / "roots.pem"
    file.write_bytes(b"x" * ((CERTIFICATE_FILE.bytes or 0) + 1))
    assert "larger than" in read(EXPORTER_OTLP_CERTIFICATE=str(file)).refused[0].reason


def test_certificates_and_client_pairs_are_tried(tmp_path: Path) -> None:
    identity = make_self_signed(["localhost"])
    certificate, key, other = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "other.pem"
    certificate.write_bytes(identity.cert_pem)
    key.write_bytes(identity.key_pem)
    other.write_bytes(make_self_signed(["localhost"]).key_pem)
    pair = {"EXPORTER_OTLP_CLIENT_CERTIFICATE": str(certificate), "EXPORTER_OTLP_CLIENT_KEY": str(key)}
    found = read(EXPORTER_OTLP_CERTIFICATE=str(certificate), **pair)
    assert found.refused == ()
    assert len(found.variables) == 4
    for wrong, reason in (
        (str(other), "not a certificate and its key in PEM"),
        ("", "client certificate and key are needed together"),
        ("/no/such/file", "the file cannot be read: No such file or directory"),
    ):
        found = read(**(pair | {"EXPORTER_OTLP_CLIENT_KEY": wrong}))
        assert [one.reason for one in found.refused] == [reason]
        assert set(found.variables) == {"OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert read(EXPORTER_OTLP_CERTIFICATE=str(key)).refused[0].reason == "the file holds no certificates in PEM"


def test_blank_variables_count_as_unset() -> None:
    assert set(read(BSP_MAX_QUEUE_SIZE="", EXPORTER_OTLP_HEADERS=" ").variables) == {"OTEL_EXPORTER_OTLP_ENDPOINT"}


def test_a_small_queue_makes_small_batches() -> None:
    found = read(BSP_MAX_QUEUE_SIZE="16")
    assert found.refused == ()
    assert found.variables["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"] == "16"


@pytest.mark.parametrize(
    ("protocol", "value", "kept"),
    [("grpc", "none", False), ("grpc", "deflate", False), ("grpc", "gzip", True), ("http/protobuf", "deflate", True)],
)
def test_compression_is_what_the_protocol_has(protocol: str, value: str, kept: bool) -> None:
    found = read(EXPORTER_OTLP_PROTOCOL=protocol, EXPORTER_OTLP_COMPRESSION=value)
    assert ("OTEL_EXPORTER_OTLP_COMPRESSION" in found.variables) is kept
    assert found.refused == ()


def test_entries_of_a_list_may_be_empty() -> None:
    found = read(RESOURCE_ATTRIBUTES="a=b,, c=d,", EXPORTER_OTLP_HEADERS=",a=b,")
    assert found.variables["OTEL_RESOURCE_ATTRIBUTES"] == "a=b, c=d"
    assert found.headers == {"a": "b"}


NAMES = sorted({f"OTEL_{name}" for name, _ in UNUSABLE if not name.endswith("CERTIFICATE")})


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=30)), st.none() | st.text(max_size=30))
def test_any_text_is_read_or_refused(variables: dict[str, str], endpoint: str | None) -> None:
    found = read_environment(variables, endpoint)
    assert 0 <= found.share <= 1
    for refused in found.refused:
        assert refused.variable not in found.variables or refused.variable.endswith(("ENDPOINT", "BATCH_SIZE"))
