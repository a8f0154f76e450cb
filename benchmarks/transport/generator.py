"""The random number generator of the benchmarks: ChaCha with 12 rounds and a seed of 64 bits.

The same seed gives the same values on every machine and in other implementations of the benchmark, so that run orders and
intervals can be compared. Not for cryptography.
"""

_M32, _M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_SIGMA = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)
_DOUBLE_ROUNDS = 6
_QUARTERS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip


class Generator:
    """A stream of 32-bit words, and numbers drawn from it."""

    def __init__(self, seed: int) -> None:
        self._key = _key_words(seed & _M64)
        self._block = 0
        self._words: list[int] = []
        self._next = 0

    def u32(self) -> int:
        """The next 32-bit word."""
        if self._next == len(self._words):
            self._words = _chacha_block(self._key, self._block)
            self._block += 1
            self._next = 0
        word = self._words[self._next]
        self._next += 1
        return word

    def u64(self) -> int:
        """A 64-bit number from two words, the low half first."""
        low = self.u32()
        return self.u32() << 32 | low

    def below(self, bound: int) -> int:
        """A number in [0, `bound`), `bound` < 2**32, with a bias below 2**-64."""
        product = self.u32() * bound
        result, rest = product >> 32, product & _M32
        if rest > 2**32 - bound:
            result += rest + (self.u32() * bound >> 32) > _M32
        return result


def _key_words(seed: int) -> tuple[int, ...]:
    state = seed
    words = []
    for _ in range(8):
        state = (state * 6364136223846793005 + 11634580027462260723) & _M64
        mixed = (state >> 18 ^ state) >> 27 & _M32
        turn = state >> 59
        words.append((mixed >> turn | mixed << (32 - turn)) & _M32)
    return tuple(words)


def _chacha_block(key: tuple[int, ...], counter: int) -> list[int]:
    start = [*_SIGMA, *key, counter & _M32, counter >> 32, 0, 0]
    x = list(start)
    for _ in range(_DOUBLE_ROUNDS):
        for a, b, c, d in _QUARTERS:
            x[a] = (x[a] + x[b]) & _M32
            x[d] = _rotate(x[d] ^ x[a], 16)
            x[c] = (x[c] + x[d]) & _M32
            x[b] = _rotate(x[b] ^ x[c], 12)
            x[a] = (x[a] + x[b]) & _M32
            x[d] = _rotate(x[d] ^ x[a], 8)
            x[c] = (x[c] + x[d]) & _M32
            x[b] = _rotate(x[b] ^ x[c], 7)
    return [(word + first) & _M32 for word, first in zip(x, start, strict=True)]


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _M32
