-- Removes whole runs that have ended, and remembers for a while that they were there.
-- KEYS  the ended runs, by when they were created
-- ARGV  the prefixes of runs, logs and memories; before when a run must have been created; how
--       many ms to remember it; how many runs at most
-- Returns how many were removed.
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[4], 'LIMIT', 0, ARGV[6])
for _, id in ipairs(old) do
  redis.call('SET', ARGV[3] .. id, '', 'PX', ARGV[5])
  redis.call('UNLINK', ARGV[1] .. id, ARGV[2] .. id)
  redis.call('ZREM', KEYS[1], id)
end
return #old
