"""The real `openai` client library through the router."""

import openai
import pytest

from llm_request_router.testing import System

MODEL = "tiny-model"


@pytest.fixture
def library(llm_router):
    """The client as a user configures it: a base URL and a key; the gateway's headers go in by hand."""
    llm_router.add_worker(MODEL, engine_options=["--token-delay-ms", "1"])
    with openai.OpenAI(base_url=f"{llm_router.url}/v1", api_key="none", timeout=20, max_retries=0) as made:
        yield made


def ask(library, headers, **more):
    messages = [{"role": "user", "content": "hello"}]
    return library.chat.completions.create(
        model=MODEL, messages=messages, stream=True, extra_headers={**headers, "x-output-tokens": "8"}, **more
    )


def test_openai_library_streams_a_chat_completion(llm_router, library):
    chunks = list(ask(library, llm_router.headers(MODEL)))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.split() == ["Hello", ",", "how", "can", "I", "help", "you", "today"]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert {chunk.model for chunk in chunks} == {MODEL}


def test_openai_library_streams_a_response(llm_router, library):
    headers = {**llm_router.headers(MODEL), "x-output-tokens": "4"}
    events = list(library.responses.create(model=MODEL, input="hello", stream=True, extra_headers=headers))
    assert [event.type for event in events] == [
        "response.created",
        *["response.output_text.delta"] * 4,
        "response.completed",
    ]


def test_openai_library_gets_embeddings(llm_router, library):
    found = library.embeddings.create(
        model=MODEL, input=["a", "b"], encoding_format="float", extra_headers=llm_router.headers(MODEL)
    )
    assert [item.embedding for item in found.data] == [[0, 0.125, -0.25], [1, 1.125, -1.25]]


def test_openai_library_raises_its_own_errors_for_the_routers_refusals(llm_router, library):
    with pytest.raises(openai.NotFoundError):
        ask(library, llm_router.headers("unknown-model"))
    with pytest.raises(openai.BadRequestError):
        ask(library, {"x-request-id": "test"})


def test_openai_library_shows_the_reason_of_a_refusal_if_bodies_have_it():
    with (
        System.start("--error-bodies=json") as system,
        openai.OpenAI(base_url=f"{system.url}/v1", api_key="none", timeout=20, max_retries=0) as library,
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(library, {"x-request-id": "test"})
        assert (refused.value.code, refused.value.type) == ("missing_x_input_tokens", "invalid_request_error")
        assert "missing x-input-tokens" in refused.value.message
        with pytest.raises(openai.NotFoundError) as unknown:
            library.post("/chat", cast_to=object, body={})
        assert unknown.value.code == "unknown_path"


def test_connection_is_usable_after_the_library_leaves_a_stream(llm_router, library):
    with ask(library, {**llm_router.headers(MODEL)}) as stream:
        assert next(iter(stream)).model == MODEL
    assert len(list(ask(library, llm_router.headers(MODEL)))) == 10
