-- Changes the title of a conversation.
-- KEYS  the conversation
-- ARGV  the new title
-- Returns 1 if the conversation exists, else 0.
local exists = redis.call('EXISTS', KEYS[1])
if exists == 1 then
  redis.call('HSET', KEYS[1], 'title', ARGV[1])
end
return exists
