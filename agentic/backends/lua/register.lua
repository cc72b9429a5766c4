-- Adds or replaces agents, stamped with the server's time, each for its full time to live.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none; then per agent three: the record's JSON before the heartbeat's
--        text, the heartbeat given ('' for none), the JSON after it
-- return per agent the server's time, or WRONG_TYPE with nothing changed

local ttl, stamp = ARGV[1], now()
local results = {}
for i = 1, #KEYS do
  local given = ARGV[3 * i]
  if given == '' or given > stamp then given = stamp end
  local record = ARGV[3 * i - 1] .. given .. ARGV[3 * i + 1]
  -- GET makes the server refuse to overwrite a key of another type.
  local reply
  if ttl ~= '0' then
    reply = redis.pcall('SET', KEYS[i], record, 'GET', 'PX', ttl)
  else
    reply = redis.pcall('SET', KEYS[i], record, 'GET')
  end
  if type(reply) == 'table' and reply.err then
    if not find(reply.err, 'WRONGTYPE', 1, true) then return reply end
    results[i] = WRONG_TYPE
  else
    results[i] = stamp
  end
end
return results
