"""What Redis runs: the operations of many requests in one script, each as one step between those of other clients.

The arithmetic is that of `token_bucket.py`. A bucket is a hash: `l` its level, `t` the time of that in ms, `c` its capacity then.
One that is full again expires. The running requests of a scope are a sorted set of leases by the time at which they expire, so that
those of a process that is gone do not count for ever. Times are the server's: the clocks of routers do not matter.

Arguments and answer are one text each, because the client library takes longer for each argument than Redis for an operation.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from router.openai.limits.counter import Charge, Outcome, Verdict

SOURCE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local held_ms = tonumber(ARGV[1])
local word = string.gmatch(ARGV[2], '%S+')
local function number() return tonumber(word()) end
local answers, key = {}, 0

local function expiry() return string.format('%.17g', now + held_ms) end

local function level_of(name, capacity, period)
  local state = redis.pcall('HMGET', name, 'l', 't', 'c')
  if state.err then return nil end
  local level, at, before = tonumber(state[1]), tonumber(state[2]), tonumber(state[3])
  if not level or not at or not before then return capacity end
  level = math.min(before, level + math.max(0, now - at) * before / period)
  if before ~= capacity then level = capacity - (before - level) end
  return math.max(-capacity, math.min(capacity, level))
end

local function take(name, level, capacity, period, amount)
  level = math.max(-capacity, math.min(capacity, level - amount))
  if level >= capacity then redis.call('DEL', name) return level end
  redis.call('HSET', name, 'l', string.format('%.17g', level), 't', string.format('%.17g', now), 'c', capacity)
  redis.call('PEXPIRE', name, math.ceil((capacity - level) * period / capacity) + 1000)
  return level
end

local function hold(name, lease)
  redis.call('ZADD', name, expiry(), lease)
  redis.call('PEXPIRE', name, held_ms)
end

-- reserve: lease, numbers of buckets and slots; of each bucket capacity, period, amount; of each slots the most
local function reserve()
  local lease, buckets, slots = word(), number(), number()
  local first, usable, granted, levels, running, rules = key, true, true, {}, {}, {}
  key = key + buckets + slots
  for i = 1, buckets do
    local capacity, period, amount = number(), number(), number()
    rules[i] = {capacity, period, amount}
    levels[i] = level_of(KEYS[first + i], capacity, period)
    if not levels[i] then usable = false elseif levels[i] < amount then granted = false end
  end
  for i = 1, slots do
    local name, most = KEYS[first + buckets + i], number()
    local gone = redis.pcall('ZREMRANGEBYSCORE', name, '-inf', now)
    if type(gone) == 'table' then usable = false else
      running[i] = redis.call('ZCARD', name)
      if running[i] >= most then granted = false end
    end
  end
  if not usable then answers[#answers + 1] = 'x' return end
  if granted then
    for i = 1, buckets do levels[i] = take(KEYS[first + i], levels[i], unpack(rules[i])) end
    for i = 1, slots do
      hold(KEYS[first + buckets + i], lease)
      running[i] = running[i] + 1
    end
  end
  local told = {granted and 'y' or 'n'}
  for i = 1, buckets do told[#told + 1] = string.format('%.17g', levels[i]) end
  for i = 1, slots do told[#told + 1] = running[i] end
  answers[#answers + 1] = table.concat(told, ' ')
end

-- settle: as reserve, without the most
local function settle()
  local lease, buckets, slots = word(), number(), number()
  for i = 1, buckets do
    local capacity, period, amount = number(), number(), number()
    local level = level_of(KEYS[key + i], capacity, period)
    if level then take(KEYS[key + i], level, capacity, period, amount) end
  end
  for i = 1, slots do redis.pcall('ZREM', KEYS[key + buckets + i], lease) end
  key = key + buckets + slots
end

for kind in word do
  if kind == 'r' then reserve() elseif kind == 's' then settle() else
    key = key + 1
    local lease, found = word(), redis.pcall('ZADD', KEYS[key], expiry(), '')
    redis.pcall('ZREM', KEYS[key], '')
    if type(found) ~= 'table' then hold(KEYS[key], lease) end
  end
end
return table.concat(answers, '\\n')
"""


class Operation(NamedTuple):
    """What one request wants: the names in Redis, and the words for the script."""

    keys: list[str]
    words: str


def reserving(keys: list[str], lease: str, charges: Sequence[Charge], most: Sequence[int]) -> Operation:
    """Take all charges and slots, or none. `keys` are first those of the charges; `most` is of each of the slots."""
    return Operation(
        keys, f"r {lease} {len(charges)} {len(most)}{_charges(charges)}{''.join([f' {one}' for one in most])}"
    )


def settling(keys: list[str], lease: str, charges: Sequence[Charge]) -> Operation:
    """Take all charges, which may be negative, and give the slots back, whose keys are the last."""
    return Operation(keys, f"s {lease} {len(charges)} {len(keys) - len(charges)}{_charges(charges)}")


def renewing(key: str, lease: str) -> Operation:
    """Hold a slot for longer."""
    return Operation([key], f"h {lease}")


def _charges(charges: Sequence[Charge]) -> str:
    return "".join([f" {bucket.capacity} {bucket.period_ms} {amount!r}" for bucket, amount in charges])


def outcomes(answer: object, buckets: Iterable[int]) -> list[Outcome | None] | None:
    """The outcomes of the reservations among the operations, `buckets` being the number of charges of each.

    None for a reservation whose names in Redis hold something else; None for all if the answer is none of the script.
    """
    if not isinstance(answer, str):
        return None
    numbers = list(buckets)
    lines = answer.split("\n") if answer else []
    if len(lines) != len(numbers):
        return None
    try:
        return [_outcome(line.split(" "), count) for line, count in zip(lines, numbers, strict=True)]
    except ValueError:
        return None


def _outcome(words: list[str], buckets: int) -> Outcome | None:
    verdict = _VERDICTS.get(words[0])
    if verdict is None:
        return None
    levels = tuple([float(word) for word in words[1 : buckets + 1]])
    if len(levels) != buckets or not all(map(math.isfinite, levels)):
        raise ValueError
    return Outcome(verdict, levels, tuple([int(word) for word in words[buckets + 1 :]]))


_VERDICTS = {"y": Verdict.GRANTED, "n": Verdict.DENIED}
