-- Take the lease of a shard number.
-- KEYS[1] lease   ARGV[1] new value   ARGV[2] milliseconds   ARGV[3] value that may be replaced, or ''
-- Gives the value that now stands, so the caller knows by comparing whether it is its own.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[3] and held ~= ARGV[1] then
  return held
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
