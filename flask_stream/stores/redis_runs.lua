-- Lists a conversation's runs.
-- KEYS  the conversation's runs by `created`
-- ARGV  the prefix of the runs' keys
-- Returns the id and the fields of each run.
local found = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local fields = redis.call('HGETALL', ARGV[1] .. id)
  if #fields > 0 then
    found[#found + 1] = {id, fields}
  end
end
return found
