-- Reads a run, its parent, its parent's parent and so on.
-- ARGV  the prefix of the runs' keys; the run's id; the largest number of runs
-- Returns the id and the fields of each run.
local found, id = {}, ARGV[2]
while id and #found < tonumber(ARGV[3]) do
  local run = ARGV[1] .. id
  local fields = redis.call('HGETALL', run)
  if #fields == 0 then
    break
  end
  found[#found + 1] = {id, fields}
  id = redis.call('HGET', run, 'parent')
end
return found
