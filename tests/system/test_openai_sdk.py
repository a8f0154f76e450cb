"""The port for OpenAI clients of a real router, with a real worker: the lines of the README, the SDK, `curl`, TLS and keys."""

import json
import re
import shutil
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

import certs
from llm_request_router.testing import System

ROOT = Path(__file__).resolve().parents[2]
FRONT = ("--openai-listen-addr=127.0.0.1:0",)
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
ASKED = {"model": "my-model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def system():
    with System.start(*FRONT, "--openai-open") as started:
        started.add_worker("my-model", engine_options=["--token-delay-ms", "1"])
        yield started


@pytest.fixture
def client(system):
    with openai.OpenAI(base_url=f"http://{system.ports.openai}/v1", api_key="none", timeout=20, max_retries=0) as made:
        yield made


def test_the_lines_of_the_readme_work(system, capsys):
    (code,) = re.findall(r"```python\n(from openai.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(code.replace("127.0.0.1:8080", system.ports.openai), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out.startswith("Hello , how can I help you today")


@pytest.mark.parametrize("library", ["openai", "langchain_openai"])
def test_the_lines_of_the_page_work(system, capsys, library):
    page = (ROOT / "docs/openai.md").read_text()
    (code,) = re.findall(rf"```python\n(from {library} .*?)```", page, re.DOTALL)
    exec(code.replace("127.0.0.1:8080", system.ports.openai), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out.startswith("Hello , how can I help you today")


@needs_curl
def test_the_curl_lines_of_the_page_work(system):
    page = (ROOT / "docs/openai.md").read_text()
    (lines,) = (found for found in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if found.startswith("curl"))
    printed = []
    for line in lines.replace("\\\n", " ").splitlines():
        command = line.replace("127.0.0.1:8080", system.ports.openai)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=True)
        printed.append(done.stdout)
    models, model, whole, stream, events, vectors = printed
    assert [one["id"] for one in json.loads(models)["data"]] == ["my-model"]
    assert json.loads(model)["id"] == "my-model"
    assert json.loads(whole)["choices"][0]["message"]["content"].startswith("Hello , how can I help you today")
    assert stream.count("data: {") > 10
    assert stream.endswith("data: [DONE]\n\n")
    assert "event: response.completed\n" in events
    assert len(json.loads(vectors)["data"]) == 2


@needs_curl
def test_curl_needs_no_header(system):
    body = '{"model":"my-model","messages":[{"role":"user","content":"hello"}],"stream":true,"max_tokens":2}'
    url = f"http://{system.ports.openai}/v1/chat/completions"
    done = subprocess.run(["curl", "-sN", url, "-d", body], capture_output=True, text=True, timeout=20, check=True)
    assert '"content":"Hello "' in done.stdout
    assert done.stdout.endswith("data: [DONE]\n\n")


def test_the_sdk_asks_for_everything_that_the_mock_engine_has(client):
    assert [one.id for one in client.models.list()] == ["my-model"]
    found = client.chat.completions.create(**ASKED)
    assert (found.choices[0].message.content, found.usage.completion_tokens) == ("Hello , how can ", 4)
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == "Hello , how can "
    assert all(one.usage is None for one in chunks)
    assert len(client.embeddings.create(model="my-model", input=["a", "b"], encoding_format="float").data) == 2
    assert client.responses.create(model="my-model", input="hello").id.startswith("resp-mock")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(**{**ASKED, "model": "none"})
    assert unknown.value.code == "model_not_found"


def test_64_streams_at_once(client):
    patient = client.with_options(
        max_retries=5
    )  # as the SDK does; a worker on a busy machine may seem lost for a moment

    def ask(number):
        chunks = patient.chat.completions.create(**{**ASKED, "max_tokens": 1 + number % 16}, stream=True)
        return sum(1 for one in chunks if one.choices[0].delta.content)

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(ask, range(64))) == [1 + number % 16 for number in range(64)]


def test_raw_requests_get_the_envelope_whatever_is_wrong_with_them(system):
    with httpx.Client(base_url=f"http://{system.ports.openai}", timeout=20) as raw:
        for method, path, content, status, code in (
            ("POST", "/v1/chat/completions", b"{", 400, "invalid_json"),
            ("POST", "/v1/chat/completions", b'{"model":"my-model","messages":[1],"x":"\xff"}', 400, "invalid_json"),
            ("POST", "/v1/nothing", b"{}", 404, "unknown_url"),
            ("DELETE", "/v1/models", b"", 405, "method_not_supported"),
        ):
            answer = raw.request(method, path, content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert answer.headers["x-request-id"]
    long = system.request("GET", "/" + "x" * 70_000, address=system.ports.openai)
    assert (long.status, b'"code":"request_target_too_long"' in long.body) == (414, True)


GOOD = b'{"model":"my-model","messages":[{"role":"user","content":"hi"}],"max_tokens":4'


@pytest.mark.parametrize(
    ("name", "more", "code"),
    [
        ("deep", b',"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "invalid_json"),
        ("deep and cut", b',"x":' + b'{"a":' * 200_000, "invalid_json"),
        ("cut in a text", b',"x":"', "invalid_json"),
        ("cut in a number", b',"x":1e', "invalid_json"),
        ("not UTF-8", b',"x":"\xc3("}', "invalid_json"),
        ("UTF-16", None, "invalid_json"),
        ("NaN", b',"temperature":NaN}', "invalid_json"),
        ("infinite", b',"temperature":-Infinity}', "invalid_json"),
        ("two documents", b"}" + GOOD + b"}", "invalid_json"),
        ("doubled, unknown last", b',"model":"none"}', "model_not_found"),
        ("doubled, known last", b',"model":"none","model":"my-model"}', None),
        ("large number", b',"x":1' + b"0" * 300 + b"}", None),
        ("huge text", b',"x":"' + b"y" * 4_000_000 + b'"}', None),
    ],
)
def test_raw_json_is_served_or_refused_with_the_envelope(system, name, more, code):
    body = (GOOD + b"}").decode().encode("utf-16") if more is None else GOOD + more
    answer = httpx.post(f"http://{system.ports.openai}/v1/chat/completions", content=body, timeout=20)
    found = answer.json()
    if code is None:
        assert (answer.status_code, found["choices"][0]["message"]["content"]) == (200, "Hello , how can "), name
    else:
        assert answer.status_code == (404 if code == "model_not_found" else 400)
        assert (set(found["error"]), found["error"]["code"]) == ({"message", "type", "param", "code"}, code)
    assert "text/html" not in answer.headers["content-type"]
    assert system.router.exit_code is None


def test_no_header_of_a_client_steers_router_or_engine(system):
    steering = {
        "x-model": "none",
        "x-routing-key": "nobody",
        "x-routing-method": "none",
        "x-input-tokens": "1000000000",
        "x-priority": "9",
        "x-max-wait-ms": "0",
        "x-inference-server-id": "nobody",
        "x-output-tokens": "1",  # these three the mock engine would follow
        "x-mock-status": "500",
        "x-mock-echo": "me",
    }
    url = f"http://{system.ports.openai}/v1/chat/completions"
    answer = httpx.post(url, content=GOOD + b"}", headers=steering, timeout=20)
    assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, "Hello , how can ")


def test_the_port_for_gateways_is_as_it_was(system):
    assert system.chat("my-model").status == 200
    refused = system.request("POST", "/v1/chat/completions", body=b"{}")
    assert (refused.status, refused.body) == (400, b"")


def test_keys_are_asked_for_and_kept_from_workers_over_tls(tmp_path):
    identity = certs.make_self_signed(["localhost"])
    cert, key, keys = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "keys.json"
    cert.write_bytes(identity.cert_pem)
    key.write_bytes(identity.key_pem)
    from llm_request_router import programs

    added = subprocess.run(
        [*programs.command("router"), "keys", "add", f"--file={keys}", "--id=alice", "--model=my-model"],
        env=programs.environment({}),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    options = (f"--openai-keys-file={keys}", f"--openai-tls-cert-path={cert}", f"--openai-tls-key-path={key}")
    with System.start(*FRONT, *options) as system:
        system.add_worker("my-model", "other")
        trust = ssl.create_default_context(cafile=str(cert))
        base_url = f"https://localhost:{system.ports.openai.rpartition(':')[2]}/v1"
        with httpx.Client(verify=trust) as http:
            client = openai.OpenAI(base_url=base_url, api_key=added.stdout.strip(), http_client=http, max_retries=0)
            assert client.chat.completions.create(**ASKED).choices[0].message.content == "Hello , how can "
            assert [one.id for one in client.models.list()] == ["my-model"]
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(**{**ASKED, "model": "other"})
            wrong = openai.OpenAI(base_url=base_url, api_key="sk-wrong", http_client=http, max_retries=0)
            with pytest.raises(openai.AuthenticationError) as refused:
                wrong.chat.completions.create(**ASKED)
            assert refused.value.code == "invalid_api_key"
            assert refused.value.response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--openai-listen-addr requires --openai-keys-file"),
        (
            ("--openai-open", "--openai-tls-cert-path=x"),
            "--openai-tls-key-path is required with --openai-tls-cert-path",
        ),
        (("--openai-open", "--openai-tls-cert-path=x", "--openai-tls-key-path=y"), "load OpenAI TLS server identity"),
    ],
)
def test_a_start_that_cannot_serve_clients_ends_with_a_line(options, message, tmp_path):
    with pytest.raises(Exception, match=message):
        System.start(*FRONT, *options, directory=tmp_path)


def test_several_processes_share_the_port():
    with System.start(*FRONT, "--openai-open", "--processes=2") as system:
        system.add_worker("my-model", engine_options=["--token-delay-ms", "1"])
        ids = set()
        for _ in range(6):  # a connection each, which the kernel gives to any of the processes
            base_url = f"http://{system.ports.openai}/v1"
            with openai.OpenAI(base_url=base_url, api_key="none", timeout=20, max_retries=10) as client:
                ids.add(client.chat.completions.create(**ASKED).id)
        assert len(ids) == 6
