"""What Redis runs: each script as one step between those of other clients. The arithmetic is that of `token_bucket.py`.

A bucket is a hash: `l` its level, `t` the time of that in ms, `c` its capacity then. One that is full again expires. The running
requests of a scope are a sorted set of leases by the time at which they expire, so that those of a process that is gone do
not count for ever. Times are the server's, so that the clocks of routers do not matter.
"""

_COMMON = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000

local function level_of(key, capacity, period)
  local state = redis.call('HMGET', key, 'l', 't', 'c')
  local level, at, before = tonumber(state[1]), tonumber(state[2]), tonumber(state[3])
  if not level or not at or not before then return capacity end
  level = math.min(before, level + math.max(0, now - at) * before / period)
  if before ~= capacity then level = capacity - (before - level) end
  return math.max(-capacity, math.min(capacity, level))
end

local function keep(key, level, capacity, period)
  if level >= capacity then redis.call('DEL', key) return end
  redis.call('HSET', key, 'l', string.format('%.17g', level), 't', string.format('%.17g', now), 'c', capacity)
  redis.call('PEXPIRE', key, math.ceil((capacity - level) * period / capacity) + 1000)
end
"""

RESERVE = (
    _COMMON
    + """
-- ARGV: lease, ms for which a lease is held, number of buckets; of each bucket capacity, period, amount; of each slots the most
local buckets = tonumber(ARGV[3])
local levels, running, granted = {}, {}, true
for i = 1, buckets do
  local capacity, period, amount = tonumber(ARGV[1 + 3 * i]), tonumber(ARGV[2 + 3 * i]), tonumber(ARGV[3 + 3 * i])
  levels[i] = level_of(KEYS[i], capacity, period)
  if levels[i] < amount then granted = false end
end
for i = buckets + 1, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  running[i - buckets] = redis.call('ZCARD', KEYS[i])
  if running[i - buckets] >= tonumber(ARGV[3 + 2 * buckets + i]) then granted = false end
end
if granted then
  for i = 1, buckets do
    local capacity, period, amount = tonumber(ARGV[1 + 3 * i]), tonumber(ARGV[2 + 3 * i]), tonumber(ARGV[3 + 3 * i])
    levels[i] = math.max(-capacity, math.min(capacity, levels[i] - amount))
    keep(KEYS[i], levels[i], capacity, period)
  end
  for i = buckets + 1, #KEYS do
    redis.call('ZADD', KEYS[i], string.format('%.17g', now + tonumber(ARGV[2])), ARGV[1])
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
    running[i - buckets] = running[i - buckets] + 1
  end
end
for i = 1, #levels do levels[i] = string.format('%.17g', levels[i]) end
return {granted and 1 or 0, levels, running}
"""
)

SETTLE = (
    _COMMON
    + """
-- ARGV: lease, number of buckets; of each bucket capacity, period, amount
local buckets = tonumber(ARGV[2])
for i = 1, buckets do
  local capacity, period, amount = tonumber(ARGV[3 * i]), tonumber(ARGV[1 + 3 * i]), tonumber(ARGV[2 + 3 * i])
  local level = level_of(KEYS[i], capacity, period) - amount
  keep(KEYS[i], math.max(-capacity, math.min(capacity, level)), capacity, period)
end
for i = buckets + 1, #KEYS do redis.call('ZREM', KEYS[i], ARGV[1]) end
return 1
"""
)

RENEW = (
    _COMMON
    + """
-- ARGV: ms for which leases are held, then the lease of each of KEYS
for i = 1, #KEYS do
  redis.call('ZADD', KEYS[i], string.format('%.17g', now + tonumber(ARGV[1])), ARGV[1 + i])
  redis.call('PEXPIRE', KEYS[i], ARGV[1])
end
return 1
"""
)
