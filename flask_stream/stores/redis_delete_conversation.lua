-- Removes a conversation and all of its runs, including live ones.
-- KEYS  the conversation; its runs; its live runs; the principal's conversations; the principal's
--       live runs; all live runs; all ended runs; the runs to be cancelled
-- ARGV  the prefix of all keys; the conversation's id
-- Returns 1 if the conversation existed, else 0.
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  redis.call('UNLINK', ARGV[1] .. 'run:' .. id, ARGV[1] .. 'log:' .. id)
  redis.call('ZREM', KEYS[6], id)
  redis.call('ZREM', KEYS[7], id)
  redis.call('SREM', KEYS[5], id)
  redis.call('SREM', KEYS[8], id)
  -- Readers have to learn that the run no longer exists.
  redis.call('PUBLISH', ARGV[1] .. 'news:' .. id, '')
end
redis.call('ZREM', KEYS[4], ARGV[2])
local existed = redis.call('EXISTS', KEYS[1])
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
return existed
