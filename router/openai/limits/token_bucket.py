"""The arithmetic of one bucket: it holds up to its capacity, is refilled evenly over its period, and what is used is taken out.

Levels are fractions, so a slow bucket under steady use refills as it should. A level may be below zero: usage that turned out
larger than its estimate is owed, up to the capacity, and paid back by refilling. `redis_scripts.py` has the same in Lua.
"""


def refilled(level: float, elapsed_ms: float, capacity: int, period_ms: int) -> float:
    """The level `elapsed_ms` after it was `level`. A clock that went back refills nothing."""
    if elapsed_ms > 0:
        level += elapsed_ms * capacity / period_ms
    return level if level < capacity else float(capacity)


def taken(level: float, amount: float, capacity: int) -> float:
    """The level after `amount` was taken, or with a negative amount put back."""
    level -= amount
    if level > capacity:
        return float(capacity)
    return level if level > -capacity else -float(capacity)


def wait_ms(level: float, amount: float, capacity: int, period_ms: int) -> float:
    """Milliseconds until `amount` is there, without other use; at least 0. `amount` must not be above `capacity`."""
    return max(0.0, amount - level) * period_ms / capacity


def until_full_ms(level: float, capacity: int, period_ms: int) -> float:
    """Milliseconds until the bucket is full, without other use."""
    return wait_ms(level, capacity, capacity, period_ms)
