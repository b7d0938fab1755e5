-- Removes whole runs that have ended, and remembers for a while whose they were.
-- KEYS  the ended runs, by when they were created
-- ARGV  the prefix of all keys; before when a run must have been created; how many ms to remember
--       it; how many runs at most
-- Returns the chain, the principal and the conversation of each that was removed.
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[2], 'LIMIT', 0, ARGV[4])
local purged = {}
for _, id in ipairs(old) do
  local run = ARGV[1] .. 'run:' .. id
  local of = redis.call('HMGET', run, 'conversation', 'principal', 'chain')
  -- First of all, so that a server whose memory is full lets the rest be written.
  redis.call('UNLINK', run, ARGV[1] .. 'log:' .. id)
  redis.call('ZREM', KEYS[1], id)
  redis.call('SET', ARGV[1] .. 'gone:' .. id, of[2] or '', 'PX', ARGV[3])
  if of[1] then
    purged[#purged + 1] = {of[3], of[2], of[1]}
    local conversation = of[1] .. ':' .. of[2]
    local runs = ARGV[1] .. 'runs-in:' .. conversation
    redis.call('ZREM', runs, id)
    if redis.call('EXISTS', runs) == 0 then
      redis.call('UNLINK', ARGV[1] .. 'conversation:' .. conversation)
      redis.call('ZREM', ARGV[1] .. 'conversations-of:' .. of[2], of[1])
    end
  end
end
return purged
