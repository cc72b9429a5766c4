-- Adds or replaces agents, stamped with the server's time, each for its full time to live.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none; then per agent its record's JSON, '' for a heartbeat not given
-- return per agent the server's time, or WRONG_TYPE with nothing changed

local ttl, stamp = ARGV[1], now()

-- Within a JSON string the quotes would be escaped, and metadata stand behind: the first place found is the field.
local function stamped(record)
  local _, opened = find(record, ',"last_heartbeat":"', 1, true)
  local closed = find(record, '"', opened + 1, true)
  local given = sub(record, opened + 1, closed - 1)
  if given ~= '' and given <= stamp then return record end
  return sub(record, 1, opened) .. stamp .. sub(record, closed)
end

local refusal = overtaken()
if refusal then return refusal end
local results = {}
for i = 1, #KEYS do
  local record = stamped(ARGV[i + 1])
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
