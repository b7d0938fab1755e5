-- Creates a run, held by a lease token, if its conditions are met.
-- KEYS  the run; all live runs by the expiry of their lease; the run's conversation; its runs by
--       `created`; its live runs; the principal's conversations by `updated`; the principal's live
--       runs
-- ARGV  the run's id; the lease token; the lease in ms; the conversation's id; the run's `created`;
--       the conditions: max_live_runs, 1 or 0 for only_live_run, title; then the names and values
--       of the run's fields
-- Returns nil if this token created the run, now or earlier; else {'exists', the run's fields},
-- {'busy', the id of a live run} or {'full'}.
local existing = redis.call('HMGET', KEYS[1], 'lease_token', 'status')
if existing[1] == ARGV[2] then
  return nil
elseif existing[2] then
  return {'exists', redis.call('HGETALL', KEYS[1])}
end

-- Returns the ids in a set that are live, and removes the others, whose runs were deleted by
-- something other than this store.
local function live_ids(set)
  local ids = {}
  for _, id in ipairs(redis.call('SMEMBERS', set)) do
    if redis.call('ZSCORE', KEYS[2], id) then
      ids[#ids + 1] = id
    else
      redis.call('SREM', set, id)
    end
  end
  return ids
end

local max_live, only, title = tonumber(ARGV[6]), ARGV[7] == '1', ARGV[8]
if only then
  local busy = live_ids(KEYS[5])
  if #busy > 0 then
    return {'busy', busy[1]}
  end
end
if max_live > 0 and redis.call('SCARD', KEYS[7]) >= max_live and #live_ids(KEYS[7]) >= max_live then
  return {'full'}
end

-- Leases use the server's clock, because the clocks of workers may differ.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'lease_token', ARGV[2], unpack(ARGV, 9))
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[4], ARGV[5], ARGV[1])
redis.call('SADD', KEYS[5], ARGV[1])
redis.call('SADD', KEYS[7], ARGV[1])
local updated = redis.call('HGET', KEYS[3], 'updated')
if not updated then
  redis.call('HSET', KEYS[3], 'title', title, 'created', ARGV[5], 'updated', ARGV[5])
  redis.call('ZADD', KEYS[6], ARGV[5], ARGV[4])
elseif tonumber(updated) < tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[3], 'updated', ARGV[5])
  redis.call('ZADD', KEYS[6], ARGV[5], ARGV[4])
end
return nil
