-- Stores batches. A batch is stored as a whole if its lease token holds the run and if it follows
-- the last event of the run's log.
-- KEYS  the live runs; the ended runs; the runs to be cancelled
-- ARGV  the prefix of all keys; then for each batch two arguments, because each argument costs the
--       client time. The first has these fields, separated by tabs: the run's id, the lease token,
--       the seq before the batch, its last seq, the run's final status or nothing; and then either
--       nothing or the run's started, first_chunk, ended, answer. The second is the events as
--       lines.
-- Returns for each batch: 1 if it is stored, by this call or by an earlier one, else 0.
local runs, logs, news = ARGV[1] .. 'run:', ARGV[1] .. 'log:', ARGV[1] .. 'news:'

local function mark_ended(id, run)
  local fields = redis.call('HMGET', run, 'created', 'conversation', 'principal')
  redis.call('ZREM', KEYS[1], id)
  redis.call('ZADD', KEYS[2], fields[1], id)
  redis.call('SREM', KEYS[3], id)
  redis.call('SREM', ARGV[1] .. 'live-in:' .. fields[2] .. ':' .. fields[3], id)
  redis.call('SREM', ARGV[1] .. 'live-of:' .. fields[3], id)
end

local function set_fields(run, values)
  local names, i = {'started', 'first_chunk', 'ended', 'answer'}, 0
  for value in string.gmatch(values .. '\t', '([^\t]*)\t') do
    i = i + 1
    if value ~= '' then
      redis.call('HSET', run, names[i], value)
    end
  end
end

local function append(head, events)
  local id, lease_token, after, last, status, values =
    string.match(head, '^([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)\t(.*)$')
  local run, log, entry = runs .. id, logs .. id, last .. '-0'
  local current = redis.call('HMGET', run, 'lease_token', 'seq', 'status')
  if current[1] ~= lease_token then
    return 0
  end
  if current[2] ~= after or current[3] ~= 'running' then
    local stored = redis.call('XRANGE', log, entry, entry)[1]
    return stored and stored[2][2] == events and 1 or 0
  end
  redis.call('XADD', log, entry, 'e', events)
  if status == '' then
    redis.call('HSET', run, 'seq', last)
  else
    redis.call('HSET', run, 'seq', last, 'status', status)
    mark_ended(id, run)
  end
  if values ~= '' then
    set_fields(run, values)
  end
  redis.call('PUBLISH', news .. id, '')
  return 1
end

local stored = {}
for i = 2, #ARGV, 2 do
  stored[#stored + 1] = append(ARGV[i], ARGV[i + 1])
end
return stored
