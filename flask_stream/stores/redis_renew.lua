-- Renews leases.
-- KEYS  the live runs by the expiry of their lease; then each run
-- ARGV  the lease in ms; then for each run: its id, the lease token
-- Returns for each run: 'yes', 'cancel' or 'lost'.
local time = redis.call('TIME')
local expiry = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
local answers = {}
for i = 1, #KEYS - 1 do
  local held = redis.call('HMGET', KEYS[i + 1], 'lease_token', 'status', 'cancel')
  if held[1] == ARGV[2 * i + 1] and held[2] == 'running' then
    redis.call('ZADD', KEYS[1], expiry, ARGV[2 * i])
    answers[i] = held[3] and 'cancel' or 'yes'
  else
    answers[i] = 'lost'
  end
end
return answers
