"""Each decoder for three seconds, as `make fuzz` does for longer: no foreign error, no slow input, no memory."""

import logging
import random
import re

import pytest
from run import HERE, check, corpus, fuzz, main

from support.decoders import Decoder, all_decoders
from support.mutation import MAX_BYTES, mutate

DECODERS = all_decoders()
SECONDS, INPUTS = 3.0, 20_000


@pytest.fixture(autouse=True)
def without_log(caplog: pytest.LogCaptureFixture) -> None:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_a_decoder_bears_mutations_of_its_corpus(decoder: Decoder) -> None:
    count, finding = fuzz(decoder, SECONDS, random.SystemRandom().randrange(1 << 40), INPUTS)
    assert finding is None, f"{finding.why}; seed {finding.seed}: {finding.data[:200].hex()}"
    assert count > 10


def test_every_decoder_has_a_corpus_and_every_corpus_a_decoder() -> None:
    assert {path.stem for path in (HERE / "corpus").glob("*.hex")} == {decoder.name for decoder in DECODERS}
    assert all(corpus(decoder.name) for decoder in DECODERS)


def test_a_seed_repeats_its_input_and_inputs_are_bounded() -> None:
    stored = corpus("http_request")
    made = [mutate(stored, random.Random(seed)) for seed in range(300)]
    assert made == [mutate(stored, random.Random(seed)) for seed in range(300)]
    assert len(set(made)) > 200
    assert max(map(len, made)) <= MAX_BYTES


def test_what_a_decoder_does_not_bear_is_found() -> None:
    def fails(data: bytes) -> None:
        raise KeyError(len(data))

    def hoards(data: bytes) -> bytes:
        return bytes(16 << 20)

    assert check(Decoder("x", fails), b"abc", trace=False) == "KeyError: 3"
    assert check(Decoder("x", fails, (KeyError,)), b"abc", trace=False) is None
    assert re.fullmatch(r"held 1[67]\d{6} bytes for 0", check(Decoder("x", hoards), b"", trace=True) or "")


def test_the_command_runs_the_decoders_that_are_named() -> None:
    said: list[str] = []
    assert main(["--seconds", "0.05", "--decoder", "dialled_url", "--seed", "7"], said.append) == 0
    assert len(said) == 1
    assert said[0].startswith("dialled_url")
