-- Who owns one channel: taken, or given up.
-- KEYS[1] hash: h incarnation of the owner, if there is one; e its epoch, or that of the last
-- ARGV[1] seconds to keep it
-- ARGV[2] what to do:
--   'take'      ARGV[3] own incarnation   ARGV[4] over whom, 'HOLDER EPOCH' or ''   ARGV[5] that epoch, or 0
--   'give_up'   ARGV[3] 'HOLDER EPOCH'
-- Gives {holder, epoch} after 'take'.
local known = redis.call('HMGET', KEYS[1], 'h', 'e')
local holder, epoch = known[1], known[2] or '0'

if ARGV[2] == 'give_up' then
  if holder and holder .. ' ' .. epoch == ARGV[3] then
    redis.call('HDEL', KEYS[1], 'h')
    redis.call('EXPIRE', KEYS[1], ARGV[1])
  end
  return {}
end

if holder and holder .. ' ' .. epoch ~= ARGV[4] then
  return {holder, epoch}
end
-- What the taker knows counts too: a copy of the data that took over may have missed an owner.
epoch = string.format('%.0f', math.max(tonumber(epoch), tonumber(ARGV[5])) + 1)
redis.call('HSET', KEYS[1], 'h', ARGV[3], 'e', epoch)
redis.call('EXPIRE', KEYS[1], ARGV[1])
return {ARGV[3], epoch}
