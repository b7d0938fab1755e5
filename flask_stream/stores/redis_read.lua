-- Reads the batches that contain a range of events.
-- KEYS  the log
-- ARGV  the first seq; the last seq
-- Returns the last batch's id and the events of all batches as lines, or nil if there are none.
local first, last = ARGV[1] .. '-0', ARGV[2] .. '-0'
local batches = redis.call('XRANGE', KEYS[1], first, last)
if #batches == 0 or batches[#batches][1] ~= last then
  -- This batch begins at or before the last seq and ends after it.
  batches[#batches + 1] = redis.call('XRANGE', KEYS[1], last, '+', 'COUNT', 1)[1]
end
if #batches == 0 then
  return nil
end
-- Joined here, because parsing a thousand small replies costs the client far more time.
local events = {}
for i, batch in ipairs(batches) do
  events[i] = batch[2][2]
end
return {batches[#batches][1], table.concat(events, '\n')}
