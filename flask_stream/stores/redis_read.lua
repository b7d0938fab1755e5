-- Reads events after a seq: as many as wanted, up to the end of a batch.
-- KEYS  the log
-- ARGV  the first seq wanted, the last one
-- Returns the last batch's id and all events as lines, or nil if there are none.
local first, last = ARGV[1] .. '-0', ARGV[2] .. '-0'
local batches = redis.call('XRANGE', KEYS[1], first, last)
if #batches == 0 or batches[#batches][1] ~= last then
  -- The batch that begins before the last seq and ends after it.
  batches[#batches + 1] = redis.call('XRANGE', KEYS[1], last, '+', 'COUNT', 1)[1]
end
if #batches == 0 then
  return nil
end
-- Joined here, because taking a thousand small replies apart costs the client far more.
local events = {}
for i, batch in ipairs(batches) do
  events[i] = batch[2][2]
end
return {batches[#batches][1], table.concat(events, '\n')}
