-- Number a publication, keep it in the channel's stream and bring it to the subscribers, in one step.
-- KEYS[1] meta   KEYS[2] stream   KEYS[3] result, only with an idempotency key; the last one, only with a fence: owner
-- ARGV[1] pub/sub channel   ARGV[2] head of the message   ARGV[3] its tail
-- ARGV[4] publications to keep   ARGV[5] seconds to keep them   ARGV[6] seconds to keep the meta
-- ARGV[7] sequence of the publishing shard
-- ARGV[8] '0' at the first try; '1' if what became of an earlier one is unknown; '2' the same, and others of
--   this shard may have been sent elsewhere meanwhile
-- ARGV[9] version, 20 digits, or ''   ARGV[10] the version's epoch   ARGV[11] seconds to keep the result
-- ARGV[12] epoch, 8 letters, if there is none yet, or the one there is was another copy's
-- ARGV[13] generation of this copy of the data, '' if it is not known; in a cluster '@', the generation, and those before
-- ARGV[14] 'k' if what was acknowledged is in this copy, 'l' if some of it may be lost
-- ARGV[15] sequence of the one before it, of this shard in this channel, that was still on its way when this
--   one was sent; 0 if there was none
-- ARGV[16] the command that publishes, if it is not PUBLISH
-- ARGV[17] the fence: who must own the channel, 'HOLDER EPOCH'   ARGV[18] seconds to keep the owner, see owner.lua
-- Gives the position: offset, 16 digits, and epoch, 8 letters. Or '!', the present owner, ' ' and its epoch if that
-- is not the fence; nothing is done then.
-- Fails with OVERTAKES if the one before it was not taken, and with UNDECIDED if nobody can tell any more
-- whether the earlier try was; nothing is done then.
--
-- What the meta remembers of a shard is the highest sequence that was taken. Since none is taken before all
-- those that were on their way before it, each lower one is done, too.
-- A second try writes something, whatever it finds: WAIT waits for what its connection has written.

-- Shards whose last publication here is remembered; when there are more, only half as many, the latest.
local ORIGINS = 64
-- Publications looked through, newest first, for one that was taken before the last of its shard.
local SEARCHED, STEP = 64, 8

local owner_key = ARGV[17] and KEYS[#KEYS]
local result_key = KEYS[3] ~= owner_key and KEYS[3]
local meta, stream, head, generation, earlier = KEYS[1], KEYS[2], ARGV[2], ARGV[13] or ''
if string.sub(generation, 1, 1) == '@' then
  -- A generation that is none of the earlier ones was another group's, from which the channel has moved here.
  generation, earlier = string.sub(generation, 2, 9), string.sub(generation, 10)
end
local sequence, before = tonumber(ARGV[7]), tonumber(ARGV[15] or 0)
-- Incarnation (8 bytes) and sequence (8 bytes) stand in the head from its fifth byte on.
local origin, wanted = 'i' .. string.sub(head, 5, 12), string.sub(head, 5, 20)
local known = redis.call('HMGET', meta, 'e', 's', origin, 'g', 't')
local epoch, top, remembered = known[1], tonumber(known[2] or '0'), known[3]
local last, last_offset = 0, 0
if remembered then
  local digits, offset_digits = string.match(remembered, '^(%d+) (%d+)$')
  last, last_offset = tonumber(digits), tonumber(offset_digits)
end

local function position(offset)
  return string.format('%016.0f', offset) .. epoch
end

-- Remember that this publication is done, with other fields; only where there is a meta.
local function remember(offset, fields)
  local value = remembered
  if last <= sequence then
    value = string.format('%.0f %.0f', sequence, offset)
  end
  local added = redis.call('HSET', meta, origin, value, unpack(fields))
  if added == 0 or redis.call('HLEN', meta) <= ORIGINS + 7 then
    return
  end
  local all, origins = redis.call('HGETALL', meta), {}
  for i = 1, #all, 2 do
    if #all[i] == 9 then
      origins[#origins + 1] = {all[i], tonumber(string.match(all[i + 1], ' (%d+)$'))}
    end
  end
  table.sort(origins, function(one, other) return one[2] < other[2] end)
  for i = 1, #origins - ORIGINS / 2 do
    if origins[i][1] ~= origin then
      redis.call('HDEL', meta, origins[i][1])
    end
  end
  redis.call('HSET', meta, 't', '1')
end

-- The stream's entry of this publication, from an id downwards: its offset and its message.
local function find(from)
  local seen = 0
  while seen < SEARCHED do
    local entries = redis.call('XREVRANGE', stream, from, '-', 'COUNT', STEP)
    local lowest
    for _, entry in ipairs(entries) do
      lowest = tonumber(string.match(entry[1], '^(%d+)'))
      if string.sub(entry[2][2], 5, 20) == wanted then
        return lowest, entry[2][2]
      end
    end
    seen = seen + STEP
    if #entries < STEP or lowest <= 1 then
      return nil
    end
    from = string.format('%.0f', lowest - 1) .. '-0'
  end
  return nil
end

if result_key then
  local result = redis.call('GET', result_key)
  if result then
    if epoch and last >= before then
      remember(tonumber(string.sub(result, 1, 16)) or 0, {})
    else
      redis.call('EXPIRE', result_key, ARGV[11])
    end
    return result
  end
end

if epoch and known[4] ~= generation and generation ~= '' then
  -- Another copy may have gone on from here, and given the next offsets to other publications.
  if known[4] and known[4] ~= '' and (not earlier or string.find(earlier, known[4], 1, true)) then
    local ancestors = (ARGV[14] or 'l') .. epoch .. string.format('%016.0f', top) .. (redis.call('HGET', meta, 'p') or '')
    epoch = ARGV[12]
    redis.call('HSET', meta, 'e', epoch, 'p', string.sub(ancestors, 1, 200))
  end
  redis.call('HSET', meta, 'g', generation)
end

if ARGV[8] ~= '0' then
  if not epoch then
    -- The meta is gone, or never was. What it was given stands in the message.
    local offset, message = find('+')
    if offset then
      return string.sub(message, #head + 1, #head + 24)
    end
  elseif remembered and last == sequence then
    remember(last_offset, {})
    return position(last_offset)
  elseif remembered and last > sequence then
    local offset = find(string.format('%.0f', last_offset) .. '-0')
    if not offset and ARGV[8] == '2' then
      return redis.error_reply('UNDECIDED others were taken since, and it is not among what is kept')
    end
    remember(0, {})
    -- Without an offset it was taken all the same, and is forgotten or too far back.
    return position(offset or top)
  elseif not remembered and known[5] then
    local offset = find('+')
    if not offset then
      return redis.error_reply('UNDECIDED its shard is not remembered, and it is not among what is kept')
    end
    remember(offset, {})
    return position(offset)
  end
end

-- Only now: what was taken in time stays taken.
if owner_key then
  local owner = redis.call('HMGET', owner_key, 'h', 'e')
  if not owner[1] or owner[1] .. ' ' .. owner[2] ~= ARGV[17] then
    return '!' .. (owner[1] or '') .. ' ' .. (owner[2] or '0')
  end
  redis.call('EXPIRE', owner_key, ARGV[18])
end

if last < before then
  return redis.error_reply('OVERTAKES what was sent before it was not taken')
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
  local versions = redis.call('HMGET', meta, 'v', 'w')
  if versions[1] and versions[2] == ARGV[10] then
    -- In halves: a number of Lua holds 53 bits of the 64.
    local new, old = tonumber(string.sub(ARGV[9], 1, 10)), tonumber(string.sub(versions[1], 1, 10))
    if new == old then
      new, old = tonumber(string.sub(ARGV[9], 11)), tonumber(string.sub(versions[1], 11))
    end
    if new <= old then
      remember(top, {})
      redis.call('EXPIRE', meta, ARGV[6])
      if result_key then
        redis.call('SET', result_key, position(top), 'EX', ARGV[11])
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

-- First, since it is what may not be allowed for want of room.
local kept = redis.pcall('XADD', stream, 'MAXLEN', ARGV[4], number .. '-0', 'd', message)
if type(kept) == 'table' and kept.err then
  if not (string.find(kept.err, 'WRONGTYPE', 1, true) or string.find(kept.err, 'ID specified', 1, true)) then
    return kept
  end
  -- The stream of another time, or no stream at all.
  redis.call('DEL', stream)
  redis.call('XADD', stream, 'MAXLEN', ARGV[4], number .. '-0', 'd', message)
end
redis.call('EXPIRE', stream, ARGV[5])
fields[#fields + 1], fields[#fields + 2] = 's', number
remember(offset, fields)
redis.call('EXPIRE', meta, ARGV[6])
redis.call(ARGV[16] or 'PUBLISH', ARGV[1], message)
if result_key then
  redis.call('SET', result_key, here, 'EX', ARGV[11])
end
return here
