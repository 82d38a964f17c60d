-- Who is present in one channel, by the server's clock.
-- KEYS[1] hash, client id -> '<length of user>:<user><the rest>'
-- KEYS[2] sorted set, client id by the millisecond in which it expires
-- KEYS[3] hash, user -> how many of its clients are in KEYS[1]
-- ARGV[1] what to do:
--   'add'     ARGV[2] client id   ARGV[3] value   ARGV[4] milliseconds
--   'remove'  ARGV[2] client id
--   'read'    gives all of KEYS[1]
--   'count'   gives {clients, users}
-- All three expire together, when the last client does. Who has expired before is dropped at each call.
local CHUNK = 1000

local function user_of(value)
  local length = string.match(value, '^(%d+):') or ''
  return string.sub(value, #length + 2, #length + 1 + (tonumber(length) or 0))
end

local function forget_user(value)
  local user = user_of(value)
  if redis.call('HINCRBY', KEYS[3], user, -1) <= 0 then
    redis.call('HDEL', KEYS[3], user)
  end
end

local function remove(client)
  local value = redis.call('HGET', KEYS[1], client)
  redis.call('ZREM', KEYS[2], client)
  if value then
    redis.call('HDEL', KEYS[1], client)
    forget_user(value)
  end
end

if ARGV[1] == 'remove' then
  remove(ARGV[2])
  return 0
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
repeat
  local dead = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, CHUNK)
  for _, client in ipairs(dead) do
    remove(client)
  end
until #dead < CHUNK

if ARGV[1] == 'read' then
  return redis.call('HGETALL', KEYS[1])
end
if ARGV[1] == 'count' then
  return {redis.call('HLEN', KEYS[1]), redis.call('HLEN', KEYS[3])}
end

local client, value = ARGV[2], ARGV[3]
local until_ = now + tonumber(ARGV[4])
redis.call('ZADD', KEYS[2], string.format('%.0f', until_), client)
local before = redis.call('HGET', KEYS[1], client)
if before ~= value then
  redis.call('HSET', KEYS[1], client, value)
  if before then
    forget_user(before)
  end
  redis.call('HINCRBY', KEYS[3], user_of(value), 1)
end
local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if tonumber(last[2]) <= until_ then
  for i = 1, 3 do
    redis.call('PEXPIREAT', KEYS[i], string.format('%.0f', until_))
  end
end
return 0
