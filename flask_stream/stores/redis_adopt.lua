-- Takes over live runs whose lease ran out.
-- KEYS  the live runs, by when their lease runs out
-- ARGV  the runs' prefix, the new owner, lease in ms, how many runs at most
-- Returns of each run taken: id, fields.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local adopted = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[4])) do
  local run = ARGV[1] .. id
  if redis.call('EXISTS', run) == 1 then
    redis.call('HSET', run, 'owner', ARGV[2])
    redis.call('HINCRBY', run, 'attempt', 1)
    redis.call('ZADD', KEYS[1], now + ARGV[3], id)
    adopted[#adopted + 1] = {id, redis.call('HGETALL', run)}
  else
    -- Somebody else deleted it: there is nothing left that could be ended.
    redis.call('ZREM', KEYS[1], id)
  end
end
return adopted
