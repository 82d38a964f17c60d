-- Which copy of the data this is: a promoted replica, or a server started from a snapshot, may lack what was acknowledged.
-- KEYS[1] lineage: hash, ``g`` generation, ``r`` replication id of the server that wrote it
-- ARGV[1] generation for a copy, 8 letters   ARGV[2] the replication id seen last, or ''   ARGV[3] its generation
-- ARGV[4] '1' in a cluster, where channels come from other groups: generations are told apart, and remembered in ``b``
-- Gives {generation, replication id, run id, role, generations before, if they are remembered}; no generation from a replica, nor if INFO is forbidden.
local parts = {}
for _, section in ipairs({'server', 'replication', 'persistence'}) do
  local part = redis.pcall('INFO', section)
  if type(part) ~= 'string' then
    return {'', '', '', ''}
  end
  parts[#parts + 1] = part
end
local info = table.concat(parts, '\n')
local function told(name)
  return string.match(info, name .. ':([%w_]+)') or ''
end
local role, replication, run = told('role'), told('master_replid'), told('run_id')
if role ~= 'master' or replication == '' then
  return {'', replication, run, role}
end
local is_cluster = ARGV[4] == '1'
local known = redis.call('HMGET', KEYS[1], 'g', 'r', 'b')
local before = known[3] or ''
if known[1] and known[2] == replication then
  return {known[1], replication, run, role, is_cluster and before or nil}
end
-- A server that has been a replica has a second id; so has one that started from a snapshot of a replicated server.
local was_copy = string.find(told('master_replid2'), '[^0]') ~= nil
local generation
if known[1] then
  generation = (was_copy or told('aof_enabled') ~= '1') and ARGV[1] or known[1]
elseif ARGV[2] == replication and ARGV[3] ~= '' then
  generation = ARGV[3]
else
  generation = (was_copy or is_cluster) and ARGV[1] or '0'
end
if is_cluster and known[1] and known[1] ~= generation then
  before = string.sub(known[1] .. before, 1, 200)
  redis.call('HSET', KEYS[1], 'b', before)
end
redis.call('HSET', KEYS[1], 'g', generation, 'r', replication)
return {generation, replication, run, role, is_cluster and before or nil}
