-- Take the lease of a shard number.
-- KEYS[1] lease   KEYS[2] lives
-- ARGV[1] new value   ARGV[2] milliseconds   ARGV[3] value that may be replaced, or ''
-- ARGV[4] incarnation of that value
-- Gives the value that now stands, so the caller knows by comparing whether it is its own.
-- Whose lease is replaced was seen to be gone: its life is marked as dead, for the others to clear up.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[3] and held ~= ARGV[1] then
  return held
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if held and held ~= ARGV[1] then
  redis.call('ZADD', KEYS[2], 'XX', 0, ARGV[4])
end
return ARGV[1]
