"""`make fuzz SECONDS=60`: every decoder is fed mutations of a stored corpus, each for so many seconds.

    python tests/fuzz/run.py [--seconds S] [--decoder NAME ...] [--seed N]

An input that makes a decoder raise an error that is not its own, take longer than `SLOW_S` or hold too much is written to
`.fuzz/NAME-SEED.bin`, and the command that repeats it is printed. Exit status 1 if there was one.
"""

import argparse
import logging
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from support.decoders import Decoder, all_decoders  # noqa: E402 - found by what stands above
from support.mutation import mutate  # noqa: E402

SLOW_S = 2.0
"""Much more than any input needs, on a busy machine too."""

HELD_BYTES = 8 << 20
"""What a decoder may hold at most while it works on an input of up to 64 KiB."""

_CHECKED_FOR_MEMORY = 200
"""One input in so many is also traced for memory, which is slow."""


class Finding(NamedTuple):
    """An input that a decoder did not bear."""

    decoder: str
    seed: int
    data: bytes
    why: str


def corpus(name: str) -> list[bytes]:
    """The stored inputs of one decoder."""
    return [bytes.fromhex(line) for line in (HERE / "corpus" / f"{name}.hex").read_text().split()]


def check(decoder: Decoder, data: bytes, *, trace: bool) -> str | None:
    """Feed one input; what was wrong, or None."""
    began = time.process_time()
    if trace:
        tracemalloc.start()
    try:
        decoder.feed(data)
    except decoder.errors:
        pass
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"{type(error).__name__}: {error}"
    finally:
        peak = tracemalloc.get_traced_memory()[1] if trace else 0
        tracemalloc.stop()
    if peak > HELD_BYTES:
        return f"held {peak} bytes for {len(data)}"
    took = time.process_time() - began
    return f"took {took:.1f} s" if took > SLOW_S else None


def fuzz(decoder: Decoder, seconds: float, seed: int, most: int = sys.maxsize) -> tuple[int, Finding | None]:
    """Feed mutations for `seconds` (and at most `most`); how many, and the first finding."""
    stored, count = corpus(decoder.name), 0
    until = time.monotonic() + seconds
    for data in stored:
        why = check(decoder, data, trace=True)
        if why is not None:
            return count, Finding(decoder.name, -1, data, why)
    while count < most and time.monotonic() < until:
        rng = random.Random(seed + count)
        data = mutate(stored, rng)
        why = check(decoder, data, trace=count % _CHECKED_FOR_MEMORY == 0)
        if why is not None:
            return count, Finding(decoder.name, seed + count, data, why)
        count += 1
    return count, None


def quiet() -> None:
    """Neither our log nor the libraries': it is about decoders here. For a process of its own: it changes both for good."""
    logging.disable()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[_dropped])


def _dropped(*_: object) -> str:
    raise structlog.DropEvent


def main(arguments: Sequence[str], say: Callable[[str], object] = print) -> int:
    """Run; the exit status."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each decoder (default: %(default)s)")
    parser.add_argument("--decoder", action="append", help="only this one; may be repeated")
    parser.add_argument(
        "--seed", type=int, default=None, help="where to begin; a finding names the one that repeats it"
    )
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 40) if options.seed is None else options.seed
    found = 0
    for decoder in all_decoders():
        if options.decoder and decoder.name not in options.decoder:
            continue
        count, finding = fuzz(decoder, options.seconds, seed)
        say(f"{decoder.name:<22} {count:>9} inputs from seed {seed}")
        if finding is not None:
            found += 1
            directory = HERE.parents[1] / ".fuzz"
            directory.mkdir(exist_ok=True)
            path = directory / f"{finding.decoder}-{finding.seed}.bin"
            path.write_bytes(finding.data)
            say(
                f"  {finding.why}\n  repeat: make fuzz ARGS='--decoder {finding.decoder} --seed {finding.seed}' SECONDS=1"
            )
    return 1 if found else 0


if __name__ == "__main__":
    quiet()
    sys.exit(main(sys.argv[1:]))
