-- Adds or replaces agents, stamped with the server's time, and starts their time to live.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none; then per agent its record's JSON, with '' for no heartbeat
-- return per agent the server's time, or WRONG_TYPE with nothing changed

local ttl, stamp = ARGV[1], now()

-- The first match is the field: within a JSON string the quotes would be escaped, and metadata follows later.
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
  local kind = call('TYPE', KEYS[i]).ok
  if kind == 'none' or kind == 'string' then
    write(KEYS[i], stamped(ARGV[i + 1]), ttl)
    results[i] = stamp
  else
    results[i] = WRONG_TYPE
  end
end
return results
