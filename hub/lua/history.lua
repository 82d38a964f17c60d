-- Where a channel's stream stands, and a part of it, in one step.
-- KEYS[1] meta   KEYS[2] stream
-- ARGV[1] epoch, 8 letters, if there is none yet, or the one there is was another copy's   ARGV[2] seconds to keep the meta
-- ARGV[3] XRANGE or XREVRANGE   ARGV[4] first id   ARGV[5] last id   ARGV[6] entries at most; 0 none, -1 all
-- ARGV[7] bytes after which no further entry is given, 0 for no such bound; only upwards, and with a bound of entries
-- ARGV[8] generation of this copy of the data, '' if it is not known; in a cluster '@', the generation, and those before
-- ARGV[9] 'k' if what was acknowledged is in this copy, 'l' if some of it may be lost
-- ARGV[10] epoch, and ARGV[11] offset, that a shard has seen for certain; '' and 0: none
-- Gives {position, entries, epochs before}; the position is offset, 16 digits, and epoch; of each epoch before, the
-- newest first, 'k' or 'l', its letters, and the offset, 16 digits, up to which it is the same stream.
local known = redis.call('HMGET', KEYS[1], 'e', 's', 'g', 'p')
local epoch, top, before = known[1], known[2], known[4] or ''
local generation, ancestors = ARGV[8] or ''
if string.sub(generation, 1, 1) == '@' then
  -- A generation that is none of these was another group's, from which the channel has moved here.
  generation, ancestors = string.sub(generation, 2, 9), string.sub(generation, 10)
end
if not (epoch and top) then
  epoch, top = ARGV[1], '0'
  redis.call('HSET', KEYS[1], 'e', epoch, 's', top, 'g', generation)
  -- What a lost meta has left over.
  redis.call('DEL', KEYS[2])
else
  local is_copy = generation ~= '' and known[3] and known[3] ~= '' and known[3] ~= generation
    and (not ancestors or string.find(ancestors, known[3], 1, true))
  local has_gone_back = epoch == ARGV[10] and tonumber(top) < tonumber(ARGV[11])
  if is_copy or has_gone_back then
    -- Another copy may have gone on from here, and given the next offsets to other publications.
    before = string.sub((has_gone_back and 'l' or ARGV[9]) .. epoch .. string.format('%016.0f', tonumber(top)) .. before, 1, 200)
    epoch = ARGV[1]
    redis.call('HSET', KEYS[1], 'e', epoch, 'p', before)
  end
  if known[3] ~= generation and generation ~= '' then
    redis.call('HSET', KEYS[1], 'g', generation)
  end
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
return {string.format('%016.0f', tonumber(top)) .. epoch, entries, before}
