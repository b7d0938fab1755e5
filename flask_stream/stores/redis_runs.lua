-- Lists a conversation's runs.
-- KEYS  its runs, by when they were created
-- ARGV  the runs' prefix
-- Returns of each: id, fields.
local found = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local fields = redis.call('HGETALL', ARGV[1] .. id)
  if #fields > 0 then
    found[#found + 1] = {id, fields}
  end
end
return found
