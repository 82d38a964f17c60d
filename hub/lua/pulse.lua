-- A shard lives for some time from now, by the server's clock.
-- KEYS[1] sorted set, incarnation by the millisecond until which it lives
-- ARGV[1] incarnation   ARGV[2] milliseconds   ARGV[3] milliseconds that a pulse may be long
-- Gives the incarnations that live. The key goes with the last of them.
local CHUNK = 1000

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local first, last = string.format('(%.0f', now), string.format('%.0f', now + tonumber(ARGV[3]))

redis.call('ZADD', KEYS[1], string.format('%.0f', now + tonumber(ARGV[2])), ARGV[1])
-- Those that are over; and those longer than any, from before the clock was set back.
for _, range in ipairs({{'-inf', string.format('%.0f', now)}, {'(' .. last, '+inf'}}) do
  local over = redis.call('ZRANGEBYSCORE', KEYS[1], range[1], range[2], 'LIMIT', 0, CHUNK)
  if #over > 0 then
    redis.call('ZREM', KEYS[1], unpack(over))
  end
end
local longest = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
redis.call('PEXPIREAT', KEYS[1], longest[2])
return redis.call('ZRANGEBYSCORE', KEYS[1], first, last)
