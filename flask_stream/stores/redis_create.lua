-- Creates a run, held by its owner, if its terms allow that.
-- KEYS  the run; the live runs, by when their lease runs out; its conversation; the runs in that,
--       by when they were created; the live ones in that; its principal's conversations, by when
--       they were updated; its principal's live runs
-- ARGV  id, owner, lease in ms; its conversation's id; when it is created; of its terms: how many
--       live runs its principal may have with it, 1 if it must be alone, a title; then the run's
--       fields and values in turn
-- Returns nil if this owner has created it, now or before; else {'there', the run that is there},
-- {'busy', the id of a live run} or {'full'}.
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner == ARGV[2] then
  return nil
elseif owner then
  return {'there', redis.call('HGETALL', KEYS[1])}
end

-- Those of a set that are live indeed: a run that somebody else deleted has not left it.
local function live(set)
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

local most, alone, title = tonumber(ARGV[6]), ARGV[7] == '1', ARGV[8]
if alone then
  local busy = live(KEYS[5])
  if #busy > 0 then
    return {'busy', busy[1]}
  end
end
if most > 0 and redis.call('SCARD', KEYS[7]) >= most and #live(KEYS[7]) >= most then
  return {'full'}
end

-- The server's clock, so that no two workers' clocks have to agree.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'owner', ARGV[2], unpack(ARGV, 9))
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
