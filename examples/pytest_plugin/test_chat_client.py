"""The client against a real router, a real worker and a mock engine: the fixture `llm_router` starts and ends them."""

import pytest
from chat_client import BusyError, ChatClient, ModelNotServedError


def test_an_answer_comes_in_pieces(llm_router):
    llm_router.add_worker("tiny-model", engine_options=["--token-delay-ms", "1"])
    pieces = [piece for piece in ChatClient(llm_router.url, "tiny-model").words("hello") if piece]
    assert len(pieces) > 1
    assert "".join(pieces).startswith("Hello")


def test_a_model_that_nobody_serves(llm_router):
    with pytest.raises(ModelNotServedError):
        list(ChatClient(llm_router.url, "unknown-model").words("hello"))


@pytest.mark.llm_router_options("--proxy-max-request-retries=0")
def test_a_worker_that_dies(llm_router):
    worker = llm_router.add_worker("tiny-model")
    worker.engine.kill()
    with pytest.raises(BusyError):
        list(ChatClient(llm_router.url, "tiny-model").words("hello"))
