-- Where a channel's stream stands, and a part of it, in one step.
-- KEYS[1] meta   KEYS[2] stream
-- ARGV[1] epoch, 8 letters, if there is none yet   ARGV[2] seconds to keep the meta
-- ARGV[3] XRANGE or XREVRANGE   ARGV[4] first id   ARGV[5] last id   ARGV[6] entries at most; 0 none, -1 all
-- ARGV[7] bytes after which no further entry is given, 0 for no such bound; only upwards, and with a bound of entries
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
elseif ARGV[7] ~= '0' then
  local first, most, bytes = ARGV[4], tonumber(ARGV[6]), tonumber(ARGV[7])
  while first and #entries < most and bytes > 0 do
    local some = redis.call(ARGV[3], KEYS[2], first, ARGV[5], 'COUNT', 5)
    for _, entry in ipairs(some) do
      if #entries < most and bytes > 0 then
        entries[#entries + 1] = entry
        bytes = bytes - #entry[2][2]
      end
    end
    local last = #some == 5 and tonumber(string.match(some[5][1], '^(%d+)'))
    first = last and string.format('%.0f', last + 1) .. '-0'
  end
elseif ARGV[6] ~= '0' then
  entries = redis.call(ARGV[3], KEYS[2], ARGV[4], ARGV[5], 'COUNT', ARGV[6])
end
return {string.format('%016.0f', tonumber(top)) .. epoch, entries}
