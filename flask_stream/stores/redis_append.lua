-- Stores batches, each whole, each only for its owner and only where its log ends.
-- KEYS  the live runs; the ended runs; the runs to be cancelled
-- ARGV  the prefix of all keys; then of each batch: run's id, owner, the seq it follows, its last
--       seq and the run's final status or nothing, with tabs between; its events as lines. Few
--       arguments, because each costs the client more than it costs here.
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

local function append(head, events)
  local id, owner, after, last, status =
    string.match(head, '^([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)$')
  local run, log, place = runs .. id, logs .. id, last .. '-0'
  local held = redis.call('HMGET', run, 'owner', 'seq', 'status')
  if held[1] ~= owner then
    return 0
  end
  if held[2] ~= after or held[3] ~= 'running' then
    local there = redis.call('XRANGE', log, place, place)[1]
    return there and there[2][2] == events and 1 or 0
  end
  redis.call('XADD', log, place, 'e', events)
  if status == '' then
    redis.call('HSET', run, 'seq', last)
  else
    redis.call('HSET', run, 'seq', last, 'status', status)
    ended(id, run)
  end
  redis.call('PUBLISH', news .. id, '')
  return 1
end

local stored = {}
for i = 2, #ARGV, 2 do
  stored[#stored + 1] = append(ARGV[i], ARGV[i + 1])
end
return stored
