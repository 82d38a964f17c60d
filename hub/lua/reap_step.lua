-- Take some entries out of a dead shard's register; who took them tells that they are gone.
-- KEYS[1] lives   KEYS[2] reaping of that shard   KEYS[3] its register
-- ARGV[1] its incarnation   ARGV[2] own incarnation   ARGV[3] milliseconds that the lock goes on
-- ARGV[4] cursor, '0' at first   ARGV[5] about how many entries
-- ARGV[6] seconds for which it is remembered that all is done
-- Gives {} when this is not ours (any more), {'done'} when there is none left, else {cursor, field, value, ...}.
if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return {}
end
if redis.call('HLEN', KEYS[3]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('SET', KEYS[2], 'done', 'EX', ARGV[6])
  return {'done'}
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
local found = redis.call('HSCAN', KEYS[3], ARGV[4], 'COUNT', ARGV[5])
local reply = {found[1]}
local entries = found[2]
for i = 1, #entries, 2 do
  if redis.call('HDEL', KEYS[3], entries[i]) == 1 then
    reply[#reply + 1] = entries[i]
    reply[#reply + 1] = entries[i + 1]
  end
end
return reply
