-- Begin to clear up after a dead shard.
-- KEYS[1] lives   KEYS[2] reaping of that shard
-- ARGV[1] its incarnation   ARGV[2] its score when it was judged   ARGV[3] own incarnation   ARGV[4] milliseconds
-- Gives 1 when it is ours to do; 0 when it has beaten since, or another shard is at it.
local same = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[2], ARGV[2])
for _, incarnation in ipairs(same) do
  if incarnation == ARGV[1] then
    if redis.call('SET', KEYS[2], ARGV[3], 'NX', 'PX', ARGV[4]) then
      return 1
    end
  end
end
return 0
