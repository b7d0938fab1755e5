-- Creates a run, held by its owner.
-- KEYS  the run; the live runs, by when their lease runs out
-- ARGV  id, owner, lease in ms; then the run's fields and values in turn
-- Returns nil if this owner has created it, now or before; else the run that is there.
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner == ARGV[2] then
  return nil
elseif owner then
  return redis.call('HGETALL', KEYS[1])
end
-- The server's clock, so that no two workers' clocks have to agree.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'owner', ARGV[2], unpack(ARGV, 4))
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
return nil
