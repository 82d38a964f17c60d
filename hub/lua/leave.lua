-- Give back a lease and leave the roster, unless another process holds the number by now.
-- KEYS[1] lease   KEYS[2] roster   KEYS[3] lives   KEYS[4] register of this shard
-- ARGV[1] own value of the lease   ARGV[2] shard number   ARGV[3] incarnation
-- Whom the register still holds is left to the others: this life is marked as dead then.
if redis.call('HLEN', KEYS[4]) > 0 then
  redis.call('ZADD', KEYS[3], 'XX', 0, ARGV[3])
else
  redis.call('ZREM', KEYS[3], ARGV[3])
end
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  redis.call('HDEL', KEYS[2], ARGV[2])
  return 1
end
return 0
