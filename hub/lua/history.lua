-- Where a channel's stream stands, and a part of it, in one step.
-- KEYS[1] meta   KEYS[2] stream
-- ARGV[1] epoch, 8 letters, if there is none yet   ARGV[2] seconds to keep the meta
-- ARGV[3] XRANGE or XREVRANGE   ARGV[4] first id   ARGV[5] last id   ARGV[6] entries at most; 0 none, -1 all
-- Gives {position, entries}; the position is offset, 16 digits, and epoch.
local known = redis.call('HMGET', KEYS[1], 'e', 's')
local epoch, top = known[1], known[2]
if not (epoch and top) then
  epoch, top = ARGV[1], '0'
  redis.call('HSET', KEYS[1], 'e', epoch, 's', top)
  -- What a lost meta has left over.
  redis.call('DEL', KEYS[2])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
local entries = {}
if ARGV[6] == '-1' then
  entries = redis.call(ARGV[3], KEYS[2], ARGV[4], ARGV[5])
elseif ARGV[6] ~= '0' then
  entries = redis.call(ARGV[3], KEYS[2], ARGV[4], ARGV[5], 'COUNT', ARGV[6])
end
return {string.format('%016.0f', tonumber(top)) .. epoch, entries}
