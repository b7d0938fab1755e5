-- Stores batches, each whole, each only for its owner and only where its log ends.
-- KEYS  the live runs; the ended runs; the runs to be cancelled; then of each batch: its run, its log
-- ARGV  the news channels' prefix; then of each batch: run's id, owner, the seq it follows, its
--       last seq, the run's final status or '', its events as lines
-- Returns 1 for each batch that is stored, by this call or by an earlier one, else 0.
local function append(run, log, id, owner, after, last, status, events)
  local held = redis.call('HMGET', run, 'owner', 'seq', 'status', 'created')
  if held[1] ~= owner then
    return 0
  end
  if held[2] ~= after or held[3] ~= 'running' then
    local there = redis.call('XRANGE', log, last .. '-0', last .. '-0')[1]
    return there and there[2][2] == events and 1 or 0
  end
  -- The one command that can find memory full comes first: nothing is half done.
  redis.call('XADD', log, last .. '-0', 'e', events)
  redis.call('HSET', run, 'seq', last)
  if status ~= '' then
    redis.call('HSET', run, 'status', status)
    redis.call('ZREM', KEYS[1], id)
    redis.call('ZADD', KEYS[2], held[4], id)
    redis.call('SREM', KEYS[3], id)
  end
  redis.call('PUBLISH', ARGV[1] .. id, '')
  return 1
end

local stored = {}
for i = 1, (#KEYS - 3) / 2 do
  stored[i] = append(KEYS[2 * i + 2], KEYS[2 * i + 3], unpack(ARGV, 6 * i - 4, 6 * i + 1))
end
return stored
