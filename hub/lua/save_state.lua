-- Keep what the owner of a channel knows, if it is the owner.
-- KEYS[1] owner, see owner.lua   KEYS[2] state
-- ARGV[1] 'HOLDER EPOCH'   ARGV[2] seconds to keep the owner   ARGV[3] state   ARGV[4] seconds to keep it
-- Gives '', or '!', the present owner, ' ' and the epoch; nothing is done then.
local owner = redis.call('HMGET', KEYS[1], 'h', 'e')
if not owner[1] or owner[1] .. ' ' .. owner[2] ~= ARGV[1] then
  return '!' .. (owner[1] or '') .. ' ' .. (owner[2] or '0')
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[4])
return ''
