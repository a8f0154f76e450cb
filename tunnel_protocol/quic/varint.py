"""Variable-length integers (RFC 9000 section 16)."""


def varint(value: int) -> bytes:
    """Encode an integer below 2 ** 62."""
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x40000000:
        return (value | 0x80000000).to_bytes(4, "big")
    return (value | 0xC000000000000000).to_bytes(8, "big")


def pull_varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer at `at` and the position behind it. Raises IndexError if it is truncated."""
    first = data[at]
    size = 1 << (first >> 6)
    end = at + size
    if end > len(data):
        raise IndexError("integer is cut short")
    return int.from_bytes(data[at:end], "big") & ((1 << (8 * size - 2)) - 1), end
