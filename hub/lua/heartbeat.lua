-- Renew a lease, this shard's row of the roster and its life, in one step and by the server's clock.
-- KEYS[1] lease   KEYS[2] roster   KEYS[3] lives   KEYS[4] register of this shard   KEYS[5] its reaping
-- ARGV[1] own value of the lease   ARGV[2] milliseconds   ARGV[3] shard number   ARGV[4] row (JSON)
-- ARGV[5] incarnation   ARGV[6] seconds that lives and register are kept   ARGV[7] milliseconds of silence
-- that make another shard a suspect   ARGV[8] suspects given, at most
-- Gives {''} and what follows when renewed, else {value of who holds the lease now}.
-- What follows: 0 when this life was known, 1 when it was not (the first beat, or the keys were lost), 2 when
-- it was taken for dead; then incarnation and score of each suspect, the oldest first.
-- A lease that is gone (expired during an outage, or flushed) is taken again: nobody else wanted it.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then
  return {held}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local now = redis.call('TIME')
redis.call('HSET', KEYS[2], ARGV[3], now[1] .. '.' .. string.format('%06d', tonumber(now[2])) .. ' ' .. ARGV[4])

local ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local life = redis.call('ZADD', KEYS[3], string.format('%.0f', ms), ARGV[5])
-- Whoever clears up after us stops at its next step: its lock is gone.
if redis.call('DEL', KEYS[5]) == 1 then
  life = 2
end
redis.call('EXPIRE', KEYS[3], ARGV[6])
redis.call('EXPIRE', KEYS[4], ARGV[6])

-- A clock that was set back leaves scores of the future; who lives has another at its next beat.
local reply = {'', life}
local silence = tonumber(ARGV[7])
local limit = tonumber(ARGV[8])
local ranges = {
  {'-inf', string.format('%.0f', ms - silence)},
  {string.format('%.0f', ms + silence), '+inf'},
}
for _, range in ipairs(ranges) do
  local found = redis.call('ZRANGEBYSCORE', KEYS[3], range[1], range[2], 'WITHSCORES', 'LIMIT', 0, limit)
  for i = 1, #found do
    reply[#reply + 1] = found[i]
  end
end
return reply
