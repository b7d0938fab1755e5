-- Reads the newest run of a conversation.
-- KEYS  the conversation's runs by `created`
-- ARGV  the prefix of the runs' keys
-- Returns the run's id and fields, or nil.
for i = 0, redis.call('ZCARD', KEYS[1]) - 1 do
  local id = redis.call('ZREVRANGE', KEYS[1], i, i)[1]
  local fields = redis.call('HGETALL', ARGV[1] .. id)
  if #fields > 0 then  -- else something other than this store deleted it
    return {id, fields}
  end
end
return nil
