-- Adds to a counter.
-- KEYS  the counter
-- ARGV  the amount; the time to live of a new counter in ms
-- Returns the counter's new value.
local value = redis.call('INCRBY', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) == -1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return value
