-- Unsets a key, if it is set to a value.
-- KEYS  the key
-- ARGV  the value
-- Returns nothing.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
