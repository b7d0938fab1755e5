-- Stores batches, each whole, each only for the lease token that holds its run and only where its
-- log ends.
-- KEYS  the live runs; the ended runs; the runs to be cancelled
-- ARGV  the prefix of all keys; then for each batch: the run's id, the lease token, the seq that it
--       follows, its last seq, the run's final status or nothing, and then nothing, or what the run
--       is to remember: started, first_chunk, ended, answer, with tabs between; and its events as
--       lines. Few arguments, because each costs the client more than it costs here.
-- Returns 1 for each batch that is stored, by this call or by an earlier one, else 0.
local runs, logs, news = ARGV[1] .. 'run:', ARGV[1] .. 'log:', ARGV[1] .. 'news:'

local function ended(id, run)
  local of = redis.call('HMGET', run, 'created', 'conversation', 'principal')
  redis.call('ZREM', KEYS[1], id)
  redis.call('ZADD', KEYS[2], of[1], id)
  redis.call('SREM', KEYS[3], id)
  redis.call('SREM', ARGV[1] .. 'live-in:' .. of[2] .. ':' .. of[3], id)
  redis.call('SREM', ARGV[1] .. 'live-of:' .. of[3], id)
end

local function remember(run, facts)
  local names, i = {'started', 'first_chunk', 'ended', 'answer'}, 0
  for value in string.gmatch(facts .. '\t', '([^\t]*)\t') do
    i = i + 1
    if value ~= '' then
      redis.call('HSET', run, names[i], value)
    end
  end
end

local function append(head, events)
  local id, lease_token, after, last, status, facts =
    string.match(head, '^([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)\t(.*)$')
  local run, log, place = runs .. id, logs .. id, last .. '-0'
  local held = redis.call('HMGET', run, 'lease_token', 'seq', 'status')
  if held[1] ~= lease_token then
    return 0
  end
  if held[2] ~= after or held[3] ~= 'running' then
    local stored = redis.call('XRANGE', log, place, place)[1]
    return stored and stored[2][2] == events and 1 or 0
  end
  redis.call('XADD', log, place, 'e', events)
  if status == '' then
    redis.call('HSET', run, 'seq', last)
  else
    redis.call('HSET', run, 'seq', last, 'status', status)
    ended(id, run)
  end
  if facts ~= '' then
    remember(run, facts)
  end
  redis.call('PUBLISH', news .. id, '')
  return 1
end

local stored = {}
for i = 2, #ARGV, 2 do
  stored[#stored + 1] = append(ARGV[i], ARGV[i + 1])
end
return stored
