-- Deletes a key if it has a value.
-- KEYS  the key
-- ARGV  the value
-- Returns nothing.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
