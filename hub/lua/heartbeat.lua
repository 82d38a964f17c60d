-- Renew a lease and this shard's row of the roster, in one step and by the server's clock.
-- KEYS[1] lease   KEYS[2] roster
-- ARGV[1] own value of the lease   ARGV[2] milliseconds   ARGV[3] shard number   ARGV[4] row (JSON)
-- Gives '' when renewed, else the value of who holds the lease now.
-- A lease that is gone (expired during an outage, or flushed) is taken again: nobody else wanted it.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then
  return held
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local now = redis.call('TIME')
redis.call('HSET', KEYS[2], ARGV[3], now[1] .. '.' .. string.format('%06d', tonumber(now[2])) .. ' ' .. ARGV[4])
return ''
