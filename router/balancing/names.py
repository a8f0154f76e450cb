"""Algorithm names: canonical ones, the spellings a configuration file accepts, and those of the request header."""

CANONICAL = ("power-of-n", "wait-and-widen", "round-robin", "random", "pulsar", "pulsar-wait-and-widen")

_ALIASES = {
    "power-of-two": "power-of-n",
    "powerOf2": "power-of-n",
    "powerOfN": "power-of-n",
    "powerof2": "power-of-n",
    "powerofn": "power-of-n",
    "groq-multiregion": "wait-and-widen",
    "pulsar-multiregion": "pulsar-wait-and-widen",
}


def from_file(name: str, plugins: frozenset[str] = frozenset()) -> str | None:
    """The canonical name of a spelling in a file (case counts); `plugins` are names of third-party algorithms."""
    if name in CANONICAL or name in plugins:
        return name
    return _ALIASES.get(name)


def from_header(name: str, plugins: frozenset[str] = frozenset()) -> str | None:
    """The canonical name of a header value: blanks, case and `_` for `-` are forgiven."""
    folded = "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in name.strip(" \t")).replace("_", "-")
    return from_file(folded, plugins)


def accepted() -> list[str]:
    """Every spelling a file may use."""
    return [*CANONICAL, *_ALIASES]
