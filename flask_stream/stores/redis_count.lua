-- Adds to a counter.
-- KEYS  the counter
-- ARGV  how much; how many ms a new one lives
-- Returns what it then is.
local value = redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) == -1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return value
