"""Declared limits: how many bytes or items a peer can make this program hold.

Every buffer, queue, cache and label set that is filled from outside has one. `docs/limits.md` lists all of them;
`tests/unit/test_limits_page.py` compares that page with the declarations in both directions.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit in bytes and in pieces, declared as a constant of the module that enforces it.

    At least one of `bytes` and `pieces` is set; None means that the other one is sufficient.
    """

    name: str
    """Package and item, for example `quic.crypto_buffer`: the first column of docs/limits.md."""

    bytes: int | None = None
    """Maximum number of bytes held."""

    pieces: int | None = None
    """Maximum number of pieces held (frames, gaps, header lines, names, tasks)."""

    option: str | None = None
    """The command line option that changes the limit; the values above are then its defaults."""

    def __post_init__(self) -> None:
        """Raise ValueError if neither `bytes` nor `pieces` is set."""
        if self.bytes is None and self.pieces is None:
            raise ValueError(f"limit {self.name} has neither bytes nor pieces")
