-- Sets a key that is not set.
-- KEYS  the key
-- ARGV  the value, how many ms it is set
-- Returns what it is then set to.
local there = redis.call('GET', KEYS[1])
if there then
  return there
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
