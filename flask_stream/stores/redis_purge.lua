-- Removes old runs that have ended, and remembers their principals for a while.
-- KEYS  the ended runs by `created`
-- ARGV  the prefix of all keys; the `created` before which runs are removed; the time in ms for
--       which they are remembered; the largest number of runs
-- Returns the chain, the principal and the conversation of each removed run.
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[2], 'LIMIT', 0, ARGV[4])
local purged = {}
for _, id in ipairs(old) do
  local run = ARGV[1] .. 'run:' .. id
  local fields = redis.call('HMGET', run, 'conversation', 'principal', 'chain')
  -- Free memory first, so that a server that has run out of it accepts the writes below.
  redis.call('UNLINK', run, ARGV[1] .. 'log:' .. id)
  redis.call('ZREM', KEYS[1], id)
  redis.call('SET', ARGV[1] .. 'gone:' .. id, fields[2] or '', 'PX', ARGV[3])
  if fields[1] then
    purged[#purged + 1] = {fields[3], fields[2], fields[1]}
    local conversation = fields[1] .. ':' .. fields[2]
    local runs = ARGV[1] .. 'runs-in:' .. conversation
    redis.call('ZREM', runs, id)
    if redis.call('EXISTS', runs) == 0 then
      redis.call('UNLINK', ARGV[1] .. 'conversation:' .. conversation)
      redis.call('ZREM', ARGV[1] .. 'conversations-of:' .. fields[2], fields[1])
    end
  end
end
return purged
