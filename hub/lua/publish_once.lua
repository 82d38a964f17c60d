-- Publish without keeping, unless it was done before with the same idempotency key.
-- KEYS[1] result
-- ARGV[1] pub/sub channel   ARGV[2] message   ARGV[3] seconds to keep the result
-- ARGV[4] the command that publishes, if it is not PUBLISH
-- Gives the position of the first publication with this key, '' if it has none.
local result = redis.call('GET', KEYS[1])
if result then
  return result
end
redis.call('SET', KEYS[1], '', 'EX', ARGV[3])
redis.call(ARGV[4] or 'PUBLISH', ARGV[1], ARGV[2])
return ''
