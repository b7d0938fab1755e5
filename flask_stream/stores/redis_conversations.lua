-- Lists a principal's conversations, the last updated first.
-- KEYS  its conversations, by when they were updated
-- ARGV  what the conversations' keys begin with, the principal; when the first ones may have been
--       updated; how many at most, beside those that were updated at that very moment
-- Returns of each: id, fields.
local ties = redis.call('ZCOUNT', KEYS[1], ARGV[3], ARGV[3])
local found = {}
for i, id in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[1], ARGV[3], '-inf',
                               'LIMIT', 0, ARGV[4] + ties)) do
  found[i] = {id, redis.call('HGETALL', ARGV[1] .. id .. ':' .. ARGV[2])}
end
return found
