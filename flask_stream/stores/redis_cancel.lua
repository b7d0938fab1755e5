-- Asks the worker that holds a live run to cancel it.
-- KEYS  the run; the runs to be cancelled
-- ARGV  the run's id; the channel to which every process subscribes
-- Returns nothing.
if redis.call('HGET', KEYS[1], 'status') == 'running' then
  redis.call('HSET', KEYS[1], 'cancel', 1)
  redis.call('SADD', KEYS[2], ARGV[1])
  redis.call('PUBLISH', ARGV[2], ARGV[1])
end
