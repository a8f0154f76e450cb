"""Cases 1 to 40: paths and methods, bodies, keys, members."""

import json
from typing import Any

from router.openai.keys.refusals import CANNOT_CHECK
from router.openai.ports import Authenticator
from support.front_in_memory import MESSAGES, FrontInMemory, get, post
from support.http_client import HttpAnswer
from support.openai_cases.case import (
    BODY,
    CHAT,
    COMPLETIONS,
    KEY,
    UUID,
    Case,
    Check,
    Otherwise,
    Says,
    ask,
    asked,
    both,
    got,
    holds,
    told,
)

_NOT_FOUND, _PREFIX, _OK = "Not Found", "model prefix is required", Says(200)
_TYPE = "code=400, message=Unmarshal type error: expected="
_UNSUPPORTED = "code=415, message=Unsupported Media Type"
_AUDIO = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA"}}]}]
_BAD = "invalid character 'b' looking for beginning of object key string"
_TEMPLATE: dict[str, Any] = {"top_k": 3, "chat_template_kwargs": {"a": 1}}


class _Down(Authenticator):
    """Keys cannot be checked."""

    def authenticate(self, *_: Any) -> Any:
        return CANNOT_CHECK

    def authorize(self, *_: Any) -> Any:
        return CANNOT_CHECK


async def _ready_and_not(front: FrontInMemory) -> list[HttpAnswer]:
    first = await front.ask(get("/readyz"))
    assert (first.status, first.body) == (200, b"")
    front.ready = False
    return [first, await front.ask(get("/readyz"))]


def _passed(**members: Any) -> Check:
    """The worker got these members as they were sent."""
    return holds(lambda seen: {name: seen.received[name] for name in members} == members)


REQUESTS = (
    Case(
        number=1,
        what="health",
        request=get("/healthz"),
        gateway=_OK,
        openai=Says(200, check=holds(lambda seen: seen.answer.body == b"")),
    ),
    Case(number=2, what="readiness", request=_ready_and_not, gateway=_OK, openai=Says(503)),
    Case(number=3, what="HEAD of health", request=get("/healthz", "HEAD"), gateway=Says(404), openai=_OK),
    Case(
        number=4,
        what="list of models",
        request=get("/v1/models", authorization=f"Bearer {KEY}"),
        gateway=Says(404, _NOT_FOUND),
        openai=Says(200, check=holds(lambda seen: "f/m" in [one["id"] for one in seen.document["data"]])),
    ),
    Case(
        number=5,
        what="one model",
        request=get("/v1/models/m", authorization=f"Bearer {KEY}"),
        gateway=Says(404, _NOT_FOUND),
        openai=Says(404, "model_not_found", "model"),
    ),
    Case(
        number=6,
        what="completions, which the engine does not have",
        request=ask(COMPLETIONS, prompt="a"),
        worker=lambda exchange: exchange.answer(404, b"404 page not found"),
        gateway=Says(404, _NOT_FOUND),
        openai=Says(404, "unknown_url"),
    ),
    Case(
        number=7,
        what="GET of chat",
        request=get(CHAT),
        gateway=Says(404, _NOT_FOUND),
        openai=Says(405, "method_not_supported", check=told(allow="POST")),
    ),
    Case(
        number=8,
        what="chat with a slash at its end",
        request=asked(CHAT + "/", BODY),
        gateway=Says(404, _NOT_FOUND),
        openai=Says(200, check=holds(lambda seen: seen.exchange.request.path == CHAT.encode())),
    ),
    Case(
        number=9,
        what="preflight",
        request=get(CHAT, "OPTIONS", origin="https://a.test"),
        gateway=Says(404, _NOT_FOUND),
        openai=Says(204, check=told(access_control_allow_origin="https://a.test")),
    ),
    Case(
        number=10,
        what="POST /info",
        request=post("/info", b""),
        gateway=Says(405, check=told(allow="GET")),
        openai=Says(404, "unknown_url"),
    ),
    Case(
        number=11,
        what="no body",
        request=asked(body=b""),
        gateway=Says(400, _PREFIX),
        openai=Says(400, "invalid_json"),
    ),
    Case(
        number=12,
        what="no JSON",
        request=asked(body=b"{bad"),
        gateway=Says(400, f"code=400, message=Syntax error: offset=2, error={_BAD}, internal={_BAD}"),
        openai=Says(400, "invalid_json"),
    ),
    Case(
        number=13,
        what="an array",
        request=asked(body=b"[]"),
        gateway=Says(400, f"{_TYPE}..."),
        openai=Says(400, "invalid_json"),
    ),
    Case(
        number=14,
        what="JSON with a rest",
        request=asked(body=json.dumps(BODY).encode() + b"xx"),
        gateway=Says(400, _PREFIX),
        openai=Says(400, "invalid_json"),
    ),
    Case(
        number=15,
        what="JSON with blanks",
        request=asked(body=json.dumps(BODY).encode() + b" \n"),
        gateway=_OK,
        openai=_OK,
    ),
    Case(
        number=16,
        what="no content type",
        request=asked(body=BODY, content_type=None),
        gateway=Says(400, _UNSUPPORTED),
        openai=_OK,
    ),
    Case(
        number=17,
        what="content type with a parameter",
        request=asked(body=BODY, content_type="application/json; charset=utf-8"),
        gateway=_OK,
        openai=_OK,
    ),
    Case(
        number=18,
        what="content type in other case",
        request=asked(body=BODY, content_type="Application/JSON"),
        gateway=Says(400, _UNSUPPORTED),
        openai=_OK,
    ),
    Case(
        number=19,
        what="no model",
        request=asked(body={"messages": MESSAGES}),
        gateway=Says(400, _PREFIX),
        openai=Says(400, "missing_required_parameter", "model"),
    ),
    Case(
        number=20,
        what="a model that is a number",
        request=ask(model=3),
        gateway=Says(400, f"{_TYPE}string, got=number 3, field=model..."),
        openai=Says(400, "invalid_type", "model"),
    ),
    Case(
        number=21,
        what="a model without routing key",
        request=ask(model="m"),
        workers=(("m", None),),
        gateway=Says(400, _PREFIX),
        openai=_OK,
    ),
    Case(
        number=22,
        what="an empty routing key",
        request=ask(model="/m"),
        gateway=Says(400, _PREFIX),
        openai=Says(404, "model_not_found", "model"),
    ),
    Case(
        number=23,
        what="an empty model",
        request=ask(model="f/"),
        gateway=Says(400, "model suffix is required after routing key"),
        openai=Says(404, "model_not_found", "model"),
    ),
    Case(
        number=24,
        what="a model with a slash",
        request=ask(model="f/a/b"),
        gateway=Says(200, check=got(x_routing_key="f", x_model="a/b")),
        openai=Says(200, check=got(x_routing_key="f", x_model="a/b")),
    ),
    Case(
        number=25,
        what="a UUID in upper case",
        request=ask(model=f"{UUID.upper()}/m"),
        gateway=Says(200, check=got(x_routing_key=UUID)),
        openai=Says(
            200, check=both(got(x_routing_key=UUID), holds(lambda seen: seen.document["model"] == f"{UUID.upper()}/m"))
        ),
    ),
    Case(
        number=26,
        what="two models",
        request=asked(body=b'{"model":"x","messages":[{"role":"user","content":"hi"}],"model":"f/m"}'),
        gateway=Says(200, check=holds(lambda seen: seen.received["model"] == "m")),
        openai=Says(200, check=holds(lambda seen: seen.received["model"] == "m")),
    ),
    Case(
        number=27,
        what="`Model`",
        request=asked(body={"Model": "f/m", "messages": MESSAGES}),
        gateway=Says(400, _PREFIX),
        openai=Says(400, "missing_required_parameter", "model"),
    ),
    Case(
        number=28,
        what="no key",
        request=post(body=BODY),
        gateway=Says(401, "bearer authorization is required"),
        openai=Says(401, "invalid_api_key", check=told(www_authenticate="Bearer")),
    ),
    Case(
        number=29,
        what="the scheme in lower case",
        request=asked(body=BODY, authorization=f"bearer {KEY}"),
        gateway=Says(401, "bearer authorization is required"),
        openai=_OK,
    ),
    Case(
        number=30,
        what="a wrong key",
        request=asked(body=BODY, authorization="Bearer wrong"),
        gateway=Says(401, "authentication failed"),
        openai=Says(401, "invalid_api_key", check=holds(lambda seen: b"wrong" not in seen.answer.body)),
    ),
    Case(
        number=31,
        what="a key without the right to the model",
        request=(ask(model="f/nothing"), ask(model="f/secret")),
        workers=(("secret", "f"),),
        gateway=Says(404, "not found"),
        openai=Says(
            404,
            "model_not_found",
            "model",
            check=holds(lambda seen: seen.answers[0].body.replace(b"nothing", b"secret") == seen.answer.body),
        ),
    ),
    Case(
        number=32,
        what="keys cannot be checked",
        request=ask(),
        keys=_Down(),
        gateway=Says(503, "authentication service unavailable"),
        openai=Says(503, "authentication_unavailable", check=told(retry_after="1")),
    ),
    Case(
        number=33,
        what="a priority of the client",
        request=asked(body=BODY, x_priority=""),
        gateway=Says(400, "x-priority is a reserved header"),
        openai=Says(200, check=got(x_priority=None)),
    ),
    Case(
        number=34,
        what="no messages",
        request=ask(messages=[]),
        gateway=Says(400, "messages is required"),
        openai=Says(400, "invalid_value", "messages"),
    ),
    Case(
        number=35,
        what="messages that are a text",
        request=ask(messages="x"),
        gateway=Says(400, f"{_TYPE}..."),
        openai=Says(400, "invalid_type", "messages"),
    ),
    Case(
        number=36,
        what="a limit that is no integer",
        request=ask(max_tokens=1.0),
        gateway=Says(400, f"{_TYPE}uint32, got=number 1.0, field=max_tokens..."),
        openai=Says(200, check=_passed(max_tokens=1.0)),
    ),
    Case(
        number=37,
        what="a limit below zero",
        request=ask(max_tokens=-1),
        gateway=Says(400, f"{_TYPE}uint32, got=number -1, field=max_tokens..."),
        openai=Says(200, check=_passed(max_tokens=-1)),
    ),
    Case(
        number=38,
        what="a service tier of OpenAI",
        request=ask(service_tier="default"),
        gateway=Says(400, 'servicetiers: invalid tier value "default"'),
        openai=Says(200, check=_passed(service_tier="default")),
    ),
    Case(
        number=39,
        what="members of engines",
        request=ask(**_TEMPLATE),
        gateway=Otherwise("fields are not lost", Says(200, check=_passed(**_TEMPLATE))),
        openai=Says(200, check=_passed(**_TEMPLATE)),
    ),
    Case(
        number=40,
        what="audio",
        request=ask(messages=_AUDIO),
        gateway=Says(
            400,
            "`content`: unknown content type input_audio. Supported content types are: [text image_url document]",
        ),
        openai=Says(200, check=_passed(messages=_AUDIO)),
    ),
)
