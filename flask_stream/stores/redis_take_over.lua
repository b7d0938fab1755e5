-- Takes over live runs whose lease has expired.
-- KEYS  the live runs by the expiry of their lease
-- ARGV  the prefix of the runs' keys; the new lease token; the lease in ms; the largest number of
--       runs
-- Returns the id and the fields of each run.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[4])) do
  local run = ARGV[1] .. id
  if redis.call('EXISTS', run) == 1 then
    redis.call('HSET', run, 'lease_token', ARGV[2])
    -- Earlier versions kept the lease token here. Removing it stops their workers from writing.
    redis.call('HDEL', run, 'owner')
    redis.call('HINCRBY', run, 'attempt', 1)
    redis.call('ZADD', KEYS[1], now + ARGV[3], id)
    taken[#taken + 1] = {id, redis.call('HGETALL', run)}
  else
    -- Something other than this store deleted the run.
    redis.call('ZREM', KEYS[1], id)
  end
end
return taken
