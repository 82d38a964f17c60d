-- Publish without keeping, if the channel's owner is the one that publishes; once with an idempotency key.
-- KEYS[1] result, only with an idempotency key; the last one, KEYS[2] then: owner, see owner.lua
-- ARGV[1] pub/sub channel   ARGV[2] message   ARGV[3] seconds to keep the result
-- ARGV[4] the command that publishes   ARGV[5] 'HOLDER EPOCH'   ARGV[6] seconds to keep the owner
-- Gives '', with a key the position of the first publication; or '!', the present owner, ' ' and the epoch.
local result_key, owner_key = KEYS[2] and KEYS[1], KEYS[#KEYS]
if result_key then
  local result = redis.call('GET', result_key)
  if result then
    return result
  end
end
local owner = redis.call('HMGET', owner_key, 'h', 'e')
if not owner[1] or owner[1] .. ' ' .. owner[2] ~= ARGV[5] then
  return '!' .. (owner[1] or '') .. ' ' .. (owner[2] or '0')
end
redis.call('EXPIRE', owner_key, ARGV[6])
if result_key then
  redis.call('SET', result_key, '', 'EX', ARGV[3])
end
redis.call(ARGV[4], ARGV[1], ARGV[2])
return ''
