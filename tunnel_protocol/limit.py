"""Bounds that are declared: how much of one thing a stranger or a peer can make this program hold.

Every buffer, queue, cache and label set that somebody else fills has one. `docs/limits.md` lists all of them, and
`tests/unit/test_limits_page.py` compares that page with the declarations in both directions.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound in bytes and in pieces, declared as a constant of the module that enforces it.

    At least one of `bytes` and `pieces` is given; None means that the other one bounds it already.
    """

    name: str
    """Package and thing, for instance `quic.crypto_buffer`: the first column of docs/limits.md."""

    bytes: int | None = None
    """Most bytes held."""

    pieces: int | None = None
    """Most pieces held (frames, gaps, header lines, names, tasks)."""

    option: str | None = None
    """The command line option that changes it; then the values above are its defaults."""

    def __post_init__(self) -> None:
        """Raise ValueError for a bound that bounds nothing."""
        if self.bytes is None and self.pieces is None:
            raise ValueError(f"limit {self.name} has neither bytes nor pieces")
