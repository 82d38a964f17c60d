-- Give back a lease and leave the roster, unless another process holds the number by now.
-- KEYS[1] lease   KEYS[2] roster   ARGV[1] own value of the lease   ARGV[2] shard number
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  redis.call('HDEL', KEYS[2], ARGV[2])
  return 1
end
return 0
