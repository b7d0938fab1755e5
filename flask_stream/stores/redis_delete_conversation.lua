-- Removes a conversation and all of its runs, the live ones, too, without a trace.
-- KEYS  the conversation; the runs in it; the live ones in it; its principal's conversations; its
--       principal's live runs; all live runs; all ended runs; the runs to be cancelled
-- ARGV  the prefix of all keys, the conversation's id
-- Returns 1 if there was such a conversation, else 0.
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  redis.call('UNLINK', ARGV[1] .. 'run:' .. id, ARGV[1] .. 'log:' .. id)
  redis.call('ZREM', KEYS[6], id)
  redis.call('ZREM', KEYS[7], id)
  redis.call('SREM', KEYS[5], id)
  redis.call('SREM', KEYS[8], id)
  -- Whoever reads it has to look: there is nothing more to come.
  redis.call('PUBLISH', ARGV[1] .. 'news:' .. id, '')
end
redis.call('ZREM', KEYS[4], ARGV[2])
local there = redis.call('EXISTS', KEYS[1])
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
return there
