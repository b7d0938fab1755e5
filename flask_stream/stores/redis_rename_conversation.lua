-- Gives a conversation another title.
-- KEYS  the conversation
-- ARGV  the title
-- Returns 1 if there is such a conversation, else 0.
local there = redis.call('EXISTS', KEYS[1])
if there == 1 then
  redis.call('HSET', KEYS[1], 'title', ARGV[1])
end
return there
