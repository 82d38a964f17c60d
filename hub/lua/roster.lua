-- All rows of the roster, and the server's time to judge their age by.
-- KEYS[1] roster   ARGV[1] seconds after which a row is dropped for good
-- Gives {now, number, row, number, row, ...}; a row is '<seconds> <JSON>'.
local now = redis.call('TIME')
local seconds = tonumber(now[1]) + tonumber(now[2]) / 1000000
local rows = redis.call('HGETALL', KEYS[1])
local kept = {string.format('%.6f', seconds)}
for i = 1, #rows, 2 do
  local beat = tonumber(string.match(rows[i + 1], '^(%S+) '))
  if beat and seconds - beat < tonumber(ARGV[1]) then
    kept[#kept + 1] = rows[i]
    kept[#kept + 1] = rows[i + 1]
  else
    redis.call('HDEL', KEYS[1], rows[i])
  end
end
return kept
