"""A question to a model behind the router, asked with the OpenAI SDK.

python examples/openai_sdk/chat.py "What is a token?"                    # starts a router, a worker and a mock engine for it
python examples/openai_sdk/chat.py --base-url http://127.0.0.1:8000/v1 --model my-model "What is a token?"
"""

import argparse
import uuid
from contextlib import ExitStack

import openai

from llm_request_router.testing import System


def client(base_url: str, model: str) -> openai.OpenAI:
    """The SDK for one model. What is the same for all requests is in `default_headers`; the key is for a gateway, not for the router."""
    return openai.OpenAI(base_url=base_url, api_key="none", timeout=60, default_headers={"x-model": model})


def ask(library: openai.OpenAI, model: str, question: str) -> None:
    """Print the answer as it comes. What differs from request to request is in `extra_headers`."""
    chunks = library.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        stream=True,
        extra_headers={
            "x-request-id": str(uuid.uuid4()),  # in the log lines of router and worker
            "x-input-tokens": str(len(question) // 4 + 1),  # an estimate; queues are measured in it
        },
    )
    for chunk in chunks:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def main() -> None:
    """See the docstring of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="of a router that runs, with /v1; without it one is started")
    parser.add_argument("--model", default="tiny-model", help="default: %(default)s")
    parser.add_argument("question")
    options = parser.parse_args()
    with ExitStack() as stack:
        base_url = options.base_url
        if base_url is None:
            system = stack.enter_context(System.start())
            system.add_worker(options.model)
            base_url = f"{system.url}/v1"
        library = stack.enter_context(client(base_url, options.model))
        try:
            ask(library, options.model, question=options.question)
        except openai.NotFoundError:
            raise SystemExit(f"nobody serves {options.model}") from None
        except openai.APIError as error:
            raise SystemExit(f"no answer: {error}") from None


if __name__ == "__main__":
    main()
