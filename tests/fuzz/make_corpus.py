"""Write the stored corpus anew: real messages of every kind, from the vectors of the tests and from our own encoders.

    python tests/fuzz/make_corpus.py

One file of hexadecimal lines per decoder. Add an input that once failed by appending its line.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT)]

from hpack import Encoder  # noqa: E402

import certs  # noqa: E402
from router.grpc import frames  # noqa: E402
from router.grpc.call import framed  # noqa: E402
from support.hostile_packets import crypto_frame, gaps, initial  # noqa: E402 - found by what stands above
from tunnel_protocol import capnp  # noqa: E402
from tunnel_protocol.control import llm_gateway_pb2, stargate_pb2  # noqa: E402
from tunnel_protocol.quic.varint import varint  # noqa: E402

VECTORS = ROOT / "tests" / "vectors"


def capnp_messages() -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {"Message": [], "Handshake": [], "HandshakeAck": []}
    for message in json.loads((VECTORS / "capnp.json").read_text())["messages"]:
        found[message["root"]].append(bytes.fromhex(message["hex"]))
    return {root: [data for data in messages if len(data) < 2_000][:30] for root, messages in found.items()}


def http_requests() -> list[bytes]:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: router\r\nx-model: m\r\nx-request-id: 1\r\nx-input-tokens: 5\r\n"
    )
    return [
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://router:8000/v1/models?x=1 HTTP/1.1\r\nHost: router\r\n\r\n" * 2,
        head + b"content-length: 13\r\n\r\n" + b'{"model":"m"}' + b"GET /readyz HTTP/1.0\r\n\r\n",
        head + b"transfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nx-t: 1\r\n\r\n",
        head + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n{}",
        b"OPTIONS * HTTP/1.1\r\nhost: [::1]:80\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]


def registrations() -> list[bytes]:
    stats = stargate_pb2.ModelStats(
        last_mean_input_tps=1.5, queue_time_estimate_ms_by_priority={0: 1, 5: 9}, stats_capabilities=["a"], queue_size=3
    )
    model = stargate_pb2.InferenceServerModelRegistration(status=1, stats=stats)
    return [
        stargate_pb2.InferenceServerRegistration(
            inference_server_id="w",
            inference_server_url=url,
            reverse_tunnel=reverse,
            cluster_id="c",
            models={"m": model},
        ).SerializeToString()
        for url, reverse in (
            ("http://127.0.0.1:9000", True),
            ("quic://127.0.0.1:4433", False),
            ("quic://[::1]:1", False),
            ("http:/-127.0.0.1:9000", True),
        )
    ]


def watch_responses() -> list[bytes]:
    router = stargate_pb2.StargateInfo(stargate_id="r0", advertise_addr="10.0.0.1:50071")
    return [
        stargate_pb2.WatchStargatesResponse(
            stargates=[router] * 3, watch_stargate_urls=["http://a:1"]
        ).SerializeToString()
    ]


def policies() -> list[bytes]:
    found = [
        b"{}",
        b'{"default":"round-robin","models":{"m":{"algorithm":"power-of-n","sample_count":3,"comparator":"ttft"}}}',
        b'{"request_algorithms":{"pulsar":{"algorithm":"pulsar","seed":"s"},"random":{"algorithm":"random"}}}',
        b'{"models":{"a/b":{"algorithm":"wait-and-widen","n":2,"max_queued":4,"request_algorithms":{}}}}',
    ]
    vectors = json.loads((VECTORS / "load-balancing.json").read_text())
    for case in _walk(vectors):
        if isinstance(case, dict) and ("default" in case or "models" in case) and len(found) < 20:
            found.append(json.dumps(case).encode()[:4_000])
    return found


def _walk(value: object) -> list[object]:
    below = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value, *(inner for one in below for inner in _walk(one))]


GRPC_HEAD = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/stargate.StargateControlPlane/RegisterInferenceServer"),
    (b":authority", b"router-0:50071"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"grpc-timeout", b"5S"),
    (b"authorization", b"Bearer " + b"t" * 100),
    (b"trace-bin", b"AAEC"),
]


def grpc_blocks() -> list[bytes]:
    """Blocks of headers: as clients write them, with every form of a field, and small ones that stand for much."""
    encoder = Encoder()
    large = b"\x40\x01x\x7f\xa1\x1e" + b"v" * 4_000
    return [
        encoder.encode(GRPC_HEAD),
        Encoder().encode(GRPC_HEAD, huffman=False),
        b"\x3f\xe1\x1f\x20" + encoder.encode([(b"x", b"y")]) + b"\x10\x01a\x01b\x0f\x01\x01c\x04\x01/",
        large + b"\xbe" * 15,
        large + b"\xbe" * 200,
        b"\x00\x80\x80" * 2_000 + bytes(16_000),
        b"\xff\xff\xff\xff\xff\x0f",
        b"\x20" * 30 + b"\x82",
        b"\x82\x20",
        b"\x40\x85\xff\xff\xff\xff\xff\x01x",
    ]


def grpc_connections() -> list[bytes]:
    """What clients of the gRPC ports send, right and wrong."""
    start = frames.PREFACE + frames.settings(
        {frames.INITIAL_WINDOW_SIZE: 1 << 20, frames.MAX_FRAME_SIZE: 1 << 20, 9: 7}
    )
    block, again = (encoder := Encoder()).encode(GRPC_HEAD), encoder.encode(GRPC_HEAD)

    def opened(stream_id: int, head: bytes = again, flags: int = frames.END_HEADERS) -> bytes:
        return frames.frame(frames.HEADERS, flags, stream_id, head)

    def data(stream_id: int, content: bytes, flags: int = 0) -> bytes:
        return frames.frame(frames.DATA, flags, stream_id, content)

    ping, ack = frames.frame(frames.PING, 0, 0, b"12345678"), frames.frame(frames.SETTINGS, frames.ACK, 0, b"")
    message = framed(registrations()[0])
    split = frames.frame(frames.CONTINUATION, 0, 1, block[20:30]) + frames.frame(
        frames.CONTINUATION, frames.END_HEADERS, 1, block[30:]
    )
    call = opened(1, block) + ack + data(1, message) + ping + frames.window_update(0, 999) + frames.window_update(1, 9)
    padded = b"\x03" + b"\x80\0\0\0\x10" + again + bytes(3)
    calls = b"".join(opened(2 * n + 3) + data(2 * n + 3, message[: 9 * n + 1]) for n in range(12))
    bomb = b"\x83\x86\x44\x02/a\x5f\x10application/grpc\x40\x01x\x7f\xbd\x1d" + b"v" * 3_900
    named = b"\x83\x86\xc0\xbf" + b"\xbe" * 14
    return [
        start + call + data(1, message * 3, frames.END_STREAM) + frames.go_away(0, 0, b"bye"),
        start + opened(1, block[:20], 0) + split + data(1, message[:9]) + data(1, message[9:]) + frames.reset(1, 8),
        start + call + calls + frames.settings({frames.INITIAL_WINDOW_SIZE: 3}) + frames.reset(5, 8) + ping * 20,
        start + opened(1, block) + opened(3, padded, 0x2C) + data(3, b"\x02" + message + bytes(2), frames.PADDED),
        start + call + opened(1, b"\0\1x\1y", frames.END_HEADERS | frames.END_STREAM) + data(1, b"late"),
        start + call + frames.frame(frames.PRIORITY, 0, 1, bytes(5)) + frames.frame(0x42, 9, 1, b"?") + data(1, b""),
        start + opened(1, bomb) + b"".join(opened(2 * n + 3, named) for n in range(1_000)),
        start
        + b"".join(opened(2 * n + 1, block if n == 0 else again) + frames.reset(2 * n + 1, 8) for n in range(500)),
        start + frames.settings(dict.fromkeys(range(1, 7), 65_536)) * 20 + ping * 900,
        start + call + b"".join(data(1, b"x") for _ in range(1_000)),
        start + opened(1, block) + data(1, b"\1\0\0\0\1x") + opened(3) + data(3, b"\0\xff\xff\xff\xff"),
        start + opened(2) + opened(1, b"\xff") + frames.frame(frames.PUSH_PROMISE, 0, 1, bytes(8)),
        start + opened(1, block[:9], 0) + ping + data(1, b"\xffx", frames.PADDED) + frames.window_update(0, 0x7FFFFFFF),
        start + opened(1, block) + data(1, bytes(16_384)) * 3 + (1 << 20).to_bytes(3, "big") + bytes(6),
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        frames.PREFACE + ping,
    ]


def stream_frames() -> list[bytes]:
    frame = b"\x0e\x00" + varint(5) + varint(4) + b"data"
    return [
        frame * 3,
        b"\x08\x00rest",
        b"\x0f\x00" + varint(1 << 20) + varint(1) + b"x",
        b"\x0a\x04" + varint(3) + b"abc",
    ]


def relay() -> dict[str, list[bytes]]:
    """First datagrams with a server name, what is in them, and what tunnels go on with."""
    name = b"router-0.svc"
    listed = b"\x00" + len(name).to_bytes(2, "big") + name
    extension = len(listed).to_bytes(2, "big") + listed
    extensions = b"\x00\x10\x00\x02\x00\x00" + b"\x00\x00" + len(extension).to_bytes(2, "big") + extension
    body = b"\x03\x03" + bytes(32) + b"\x00\x00\x02\x13\x01\x01\x00" + len(extensions).to_bytes(2, "big") + extensions
    hello = b"\x01" + len(body).to_bytes(3, "big") + body
    frames = [crypto_frame(40, hello[40:]), b"\x01\x00\x00", crypto_frame(0, hello[:40])]
    ack = b"\x03" + varint(9) + varint(0) + varint(1) + varint(2) + varint(0) + varint(1) + bytes(3)
    return {
        "relay_datagram": [
            initial(frames, bytes(8), bytes(8), size=1_200),
            initial([crypto_frame(0, hello)], bytes(8), bytes(8), size=1_200),
            b"\xe0\x00\x00\x00\x01\x08" + bytes(8) + b"\x08" + bytes(8) + b"\x14" + bytes(20),
            b"\xc0\x1a\x2a\x3a\x4a\x08" + bytes(8) + b"\x08" + bytes(1_200),
            b"\x40" + bytes(40),
        ],
        "relay_initial_frames": [b"".join(frames) + ack, ack + bytes(20) + b"".join(frames), b"\x1c\x00\x00\x00"],
        "relay_client_hello": [hello],
    }


def callers() -> dict[str, list[bytes]]:
    """What is said of callers of the OpenAI port: by the NVCF API, by the file of keys, by themselves, and by Redis."""
    answer = llm_gateway_pb2.AuthLlmInvocationResponse(routingKey="f", authContext={"ncaId": "acme"}, priority=3)
    answer.modelSpecs["m"].tokenRateLimit = "100-M,5000-D"
    answer.modelSpecs["m"].routingMethod = "pulsar"
    entry = {
        "id": "team-a",
        "digest": "sha256:" + "ab" * 32,
        "expires": "2027-01-01T00:00:00+01:00",
        "priority": 3,
        "models": ["m-*"],
        "limits": {"requests": "60-M", "tokens": "1000-M,5-D", "concurrency": 4},
        "model_limits": {"*": {"tokens": "5-H"}},
    }
    return {
        "caller_answer": [answer.SerializeToString()],
        "api_key_file": [json.dumps({"version": 1, "keys": [entry]}, indent=1).encode(), b'{"keys":[]}'],
        "api_key_header": [b"Bearer sk-lrr-" + b"0" * 64, b"bearer\t k", b"Basic YTpi\0sk-x", b"\0 key"],
        "limit_rules": [b"60-M,1000-D", b" 1-S , 2-W", b"1000000000000000-H"],
        "redis_answer": [b"y 3.5 -7 1\nn", b"n 1e300 2\nx", b""],
    }


def openai_streams() -> dict[str, list[bytes]]:
    """Bodies of OpenAI clients and streams of engines."""
    parts = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}]
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": parts}]
    chat = {
        "model": "f/m",
        "messages": messages,
        "stream": False,
        "stream_options": {"x": 1},
        "max_tokens": 7,
        "tools": [],
    }
    responses = {
        "model": "m",
        "input": [{"role": "user", "content": "a"}],
        "instructions": "b",
        "conversation": {"id": "c"},
    }

    def event(document: object) -> bytes:
        return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"

    def chunk(delta: object, **members: object) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": {"content": [1]}}
        return event({"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **members})

    call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": "{"}}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
    stream = chunk({"content": "a"}) + chunk({"content": "b"}, usage=None) + chunk({"tool_calls": [call]}, usage=usage)
    end = event({"model": "m", "choices": [], "usage": usage}) + b": ping\r\n\r\ndata: [DONE]\r\n\r\n"
    named = [
        event({"type": f"response.{name}", "response": {"model": "m", "usage": None}}) for name in ("created", "failed")
    ]
    failed = event({"error": {"message": "no", "code": 500}})
    return {
        "openai_body": [
            json.dumps(chat).encode(),
            json.dumps(responses, indent=1).encode(),
            b'{"model":"a","prompt":[1,2],"messages":[{}],"input":["a",[1],2],"model" : "b","mod\\u0065l":[{"a":"]"}]}',
        ],
        "openai_gateway_body": [
            json.dumps(chat).encode() + b" x",
            json.dumps({**responses, "model": "f/m", "tools": [{"type": "function"}]}).encode(),
            b'{"model":"f/m","input":["a","b"],"max_tokens":7,"service_tier":"auto","stop":["a"],"metadata":{"a":"b"}}',
        ],
        "openai_chunks": [stream + end, end + stream, stream + failed],
        "openai_whole_answer": [stream + end, event({"model": "m", "choices": [{"text": "a"}, {"index": 1}]}) * 2],
        "openai_response_events": [b"event: a\n".join(named), b"".join(named) + failed, b'data: {"delta":"a"}\n\n'],
        "openai_engine_error": [b'{"error":{"message":"a"}}', b'{"detail":"a","message":{}}', b"plain", b"<html>"],
    }


def main() -> None:
    """Write all files."""
    capnp_kinds = capnp_messages()
    headers = capnp.encode_headers([(b"x-method", b"POST"), (b"x-path", b"/v1/chat/completions"), (b"x-model", b"m")])
    answer = capnp.encode_headers([(b"x-status", b"200"), (b"content-type", b"text/event-stream")])
    body, end = capnp.encode_body(b"data: x\n\n" * 9), capnp.encode_trailers([(b"x-t", b"1")])
    pair = certs.make_self_signed(["stargate"])
    hello = b"\x01" + (200).to_bytes(3, "big") + bytes(200)
    files = {
        "capnp_message": [*capnp_kinds["Message"], headers, answer, body, end],
        "capnp_handshake": [*capnp_kinds["Handshake"], capnp.encode_handshake("w", "token")],
        "capnp_handshake_ack": [*capnp_kinds["HandshakeAck"], capnp.encode_handshake_ack(False, "no")],
        "handshake_of_worker": [*capnp_kinds["Handshake"][:10], capnp.encode_handshake("w", None)],
        "handshake_of_router": [*capnp_kinds["HandshakeAck"][:10], capnp.encode_handshake_ack(True)],
        "raw_quic_response": [answer + body * 3 + end, answer + body, answer],
        "raw_quic_request": [headers + body * 3, headers, headers + body + end],
        "quic_stream_frames": stream_frames(),
        "quic_ack_frame": [
            varint(100) + varint(7) + varint(2) + varint(3) + b"".join(varint(one) for one in (1, 2, 3, 4)),
            varint(5) + varint(0) + varint(0) + varint(5),
        ],
        "quic_crypto_stream": [
            b"\x00\x00\xc8" + hello[:200] + b"\x00\xc8\x04" + hello[200:],
            b"\x01\x00\x02ab\x00\x00\x01x",
        ],
        "quic_first_datagram": [
            initial([crypto_frame(0, hello)], bytes(8), bytes(8), size=1_200),
            initial(gaps(20), bytes(8), bytes(8), size=1_200),
            initial([b"\x01", b"\x1c\x00\x00\x00\x00"], bytes(8), bytes(8), size=1_200),
            b"\xc0\x1a\x2a\x3a\x4a\x08" + bytes(8) + b"\x08" + bytes(1_200),
        ],
        **relay(),
        **callers(),
        **openai_streams(),
        "http_request": http_requests(),
        "grpc_connection": grpc_connections(),
        "grpc_header_block": grpc_blocks(),
        "http_target": [b"/v1/models?a=%41&b", b"http://user@[::1]:80/x#y", b"*", b"/a/../b;c", b"router:443"],
        "registration": registrations(),
        "watch_response": watch_responses(),
        "auth_response": [llm_gateway_pb2.AuthLlmWorkerResponse(routingKey="tenant").SerializeToString() or b"\n\0"],
        "json_document": policies(),
        "policy": policies(),
        "routing_expression": [
            b"pulsar;seed=a; consider_kv_free_tokens=true",
            b'wait-and-widen; n=3;next_bucket_unlock_factor="0.0625";cache_affinity_input_tokens_scale=0.5',
            b'PowerOf2;sample_count="64";comparator=queue-time;max_input_work_seconds=-1.125',
            b'pulsar;seed="a \\"b\\" \\\\"',
        ],
        "command_line": [
            b"--stargate-id\nr0\n--advertise-addr=127.0.0.1:1\n--stargate-discovery-dns-name\nx\n--dns-poll-ms=5",
            b"--help",
            b"--remote-stargate-url=http://a:1,b:2\n--quic-insecure",
        ],
        "dialled_url": [
            b"quic://127.0.0.1:4433/x?y",
            b"QUIC://[::ffff:10.0.0.1]:9",
            b"quic://255.255.255.255:0",
            b"http://x",
        ],
        "server_sent_events": [
            b'data: {"type":"response.created"}\n\n' + b"data: [DONE]\r\n\r\n",
            b": ping\n\nevent: x\rdata: y\r\r",
        ],
        "certificate_pair": [pair.cert_pem + b"\0" + pair.key_pem],
        "trust_bundle": [pair.cert_pem * 2],
    }
    for name, inputs in files.items():
        path = HERE / "corpus" / f"{name}.hex"
        path.write_text("".join(f"{data.hex()}\n" for data in dict.fromkeys(inputs)))


if __name__ == "__main__":
    main()
