"""The Lua scripts of `redis`: each runs whole on the server, on the server's clock, in microseconds.

A rate bucket is a string with its TAT that expires when it is full; the slots of a holder are a sorted set of leases by
the time at which each expires. Doubles hold such times exactly (they need 51 of 53 bits).
"""

from __future__ import annotations

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local buckets = tonumber(ARGV[1])
local lease = ARGV[2]
local function put(key, tat)
  if tat > now then
    redis.call('SET', key, string.format('%.0f', tat), 'PX', string.format('%.0f', math.ceil((tat - now) / 1000)))
  else
    redis.call('DEL', key)
  end
end
"""

#: KEYS: buckets, slots. ARGV: number of buckets, lease, its life; each bucket's cost in time; each slots' limit.
#: Answers {wait, index of what is over (0: granted), now, each bucket's TAT}.
ADMIT = (
    _NOW
    + """
local life = tonumber(ARGV[3])
local wait, over, tats, before = 0, 0, {}, {}
for i = 1, buckets do
  before[i] = math.max(tonumber(redis.call('GET', KEYS[i]) or now), now)
  tats[i] = before[i] + tonumber(ARGV[3 + i])
  local short = tats[i] - now - 60000000
  if short > wait then
    wait, over = short, i
  end
end
for i = buckets + 1, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  if over == 0 and redis.call('ZCARD', KEYS[i]) >= tonumber(ARGV[3 + i]) then
    over = i
  end
end
if over > 0 then
  return {wait, over, now, unpack(before)}
end
for i = 1, buckets do
  put(KEYS[i], tats[i])
end
for i = buckets + 1, #KEYS do
  redis.call('ZADD', KEYS[i], string.format('%.0f', now + life), lease)
  redis.call('PEXPIRE', KEYS[i], math.ceil(life / 1000))
end
return {0, 0, now, unpack(tats)}
"""
)

#: KEYS: buckets, slots. ARGV: number of buckets, lease; each bucket's difference in time, then each one's mark.
FINISH = (
    _NOW
    + """
for i = 1, buckets do
  local delta, mark = tonumber(ARGV[2 + i]), tonumber(ARGV[2 + buckets + i])
  if delta ~= 0 then
    local tat = tonumber(redis.call('GET', KEYS[i]) or mark)
    put(KEYS[i], tat + math.max(delta, -math.max(0, mark - now)))
  end
end
for i = buckets + 1, #KEYS do
  redis.call('ZREM', KEYS[i], lease)
end
return 0
"""
)

#: KEYS: slots. ARGV: life, leases that still run. XX: one that was given back meanwhile stays so.
REFRESH = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], 'XX', string.format('%.0f', now + tonumber(ARGV[1])), ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(ARGV[1]) / 1000))
return 0
"""
