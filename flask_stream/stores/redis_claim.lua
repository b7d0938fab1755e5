-- Sets a key unless it is set.
-- KEYS  the key
-- ARGV  the value; its time to live in ms
-- Returns the key's value.
local current = redis.call('GET', KEYS[1])
if current then
  return current
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
