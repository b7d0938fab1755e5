-- Lists a principal's conversations, the last updated first.
-- KEYS  the principal's conversations by `updated`
-- ARGV  the prefix of the conversations' keys; the principal; the latest `updated` to list; the
--       largest number of conversations, not counting those with exactly that `updated`
-- Returns the id and the fields of each conversation.
local ties = redis.call('ZCOUNT', KEYS[1], ARGV[3], ARGV[3])
local found = {}
for i, id in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[1], ARGV[3], '-inf',
                               'LIMIT', 0, ARGV[4] + ties)) do
  found[i] = {id, redis.call('HGETALL', ARGV[1] .. id .. ':' .. ARGV[2])}
end
return found
