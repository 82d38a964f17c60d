-- Number a publication, keep it in the channel's stream and bring it to the subscribers, in one step.
-- KEYS[1] meta   KEYS[2] stream   KEYS[3] result, only with an idempotency key
-- ARGV[1] pub/sub channel   ARGV[2] head of the message   ARGV[3] its tail
-- ARGV[4] publications to keep   ARGV[5] seconds to keep them   ARGV[6] seconds to keep the meta
-- ARGV[7] sequence of the publishing shard   ARGV[8] '1' if what became of an earlier try is unknown
-- ARGV[9] version, 20 digits, or ''   ARGV[10] the version's epoch   ARGV[11] seconds to keep the result
-- ARGV[12] epoch, 8 letters, if there is none yet, or the one there is was another copy's
-- ARGV[13] generation of this copy of the data, '' if it is not known
-- ARGV[14] 'k' if what was acknowledged is in this copy, 'l' if some of it may be lost
-- ARGV[15] the command that publishes, if it is not PUBLISH
-- Gives the position: offset, 16 digits, and epoch, 8 letters.

-- Shards whose last publication here is remembered, so that a second try is known as one.
local ORIGINS = 64
-- Publications looked through, newest first, for one that was taken before the last of its shard.
local SEARCHED, STEP = 64, 8

if KEYS[3] then
  local result = redis.call('GET', KEYS[3])
  if result then
    return result
  end
end

local meta, stream, head, generation = KEYS[1], KEYS[2], ARGV[2], ARGV[13] or ''
-- Incarnation (8 bytes) and sequence (8 bytes) stand in the head from its fifth byte on.
local origin = 'i' .. string.sub(head, 5, 12)
local known = redis.call('HMGET', meta, 'e', 's', origin, 'g')
local epoch, top = known[1], tonumber(known[2] or '0')

if epoch and known[4] ~= generation and generation ~= '' then
  -- Another copy may have gone on from here, and given the next offsets to other publications.
  if known[4] and known[4] ~= '' then
    local before = (ARGV[14] or 'l') .. epoch .. string.format('%016.0f', top) .. (redis.call('HGET', meta, 'p') or '')
    epoch = ARGV[12]
    redis.call('HSET', meta, 'e', epoch, 'p', string.sub(before, 1, 200))
  end
  redis.call('HSET', meta, 'g', generation)
end

local function position(offset)
  return string.format('%016.0f', offset) .. epoch
end

if epoch and known[3] and ARGV[8] == '1' then
  local sequence, offset = string.match(known[3], '^(%d+) (%d+)$')
  if tonumber(sequence) == tonumber(ARGV[7]) then
    return position(tonumber(offset))
  elseif tonumber(sequence) > tonumber(ARGV[7]) then
    local wanted, last, seen = string.sub(head, 5, 20), tonumber(offset), 0
    while seen < SEARCHED do
      local entries =
        redis.call('XREVRANGE', stream, string.format('%.0f', last) .. '-0', '-', 'COUNT', STEP)
      for _, entry in ipairs(entries) do
        last = tonumber(string.match(entry[1], '^(%d+)'))
        if string.sub(entry[2][2], 5, 20) == wanted then
          return position(last)
        end
      end
      seen = seen + STEP
      last = last - 1
      if #entries < STEP or last < 1 then
        break
      end
    end
    -- Taken, and forgotten or too far back.
    return position(top)
  end
end

local fields = {}
if not epoch then
  epoch = ARGV[12]
  -- What a lost meta has left over.
  redis.call('DEL', stream)
  top = 0
  fields = {'e', epoch, 'g', generation}
end

if ARGV[9] ~= '' then
  local last = redis.call('HMGET', meta, 'v', 'w')
  if last[1] and last[2] == ARGV[10] then
    -- In halves: a number of Lua holds 53 bits of the 64.
    local new, old = tonumber(string.sub(ARGV[9], 1, 10)), tonumber(string.sub(last[1], 1, 10))
    if new == old then
      new, old = tonumber(string.sub(ARGV[9], 11)), tonumber(string.sub(last[1], 11))
    end
    if new <= old then
      redis.call('EXPIRE', meta, ARGV[6])
      if KEYS[3] then
        redis.call('SET', KEYS[3], position(top), 'EX', ARGV[11])
      end
      return position(top)
    end
  end
  fields[#fields + 1], fields[#fields + 2], fields[#fields + 3], fields[#fields + 4] =
    'v', ARGV[9], 'w', ARGV[10]
end

local offset = top + 1
local number = string.format('%.0f', offset)
local here = position(offset)
local message = head .. here .. ARGV[3]
local added =
  redis.call('HSET', meta, 's', number, origin, ARGV[7] .. ' ' .. number, unpack(fields))
if added > 0 and redis.call('HLEN', meta) > ORIGINS + 6 then
  local all, origins = redis.call('HGETALL', meta), {}
  for i = 1, #all, 2 do
    if #all[i] == 9 then
      origins[#origins + 1] = {all[i], tonumber(string.match(all[i + 1], ' (%d+)$'))}
    end
  end
  table.sort(origins, function(one, other) return one[2] < other[2] end)
  for i = 1, #origins - ORIGINS / 2 do
    redis.call('HDEL', meta, origins[i][1])
  end
end
redis.call('EXPIRE', meta, ARGV[6])

local kept = redis.pcall('XADD', stream, 'MAXLEN', ARGV[4], number .. '-0', 'd', message)
if type(kept) == 'table' and kept.err then
  -- The stream of another time, or no stream at all.
  redis.call('DEL', stream)
  redis.call('XADD', stream, 'MAXLEN', ARGV[4], number .. '-0', 'd', message)
end
redis.call('EXPIRE', stream, ARGV[5])
redis.call(ARGV[15] or 'PUBLISH', ARGV[1], message)
if KEYS[3] then
  redis.call('SET', KEYS[3], here, 'EX', ARGV[11])
end
return here
