-- Does what heartbeat.lua does for records that need more than a stamp in place: turns offline agents available, writes
-- the stamp into any form of record, and finds out why there is none.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none
-- return per agent 1, or ABSENT, CORRUPT or WRONG_TYPE with nothing changed

local ttl, stamp = ARGV[1], now()

local function beaten(text)
  local found = fields(text)
  if not found then return nil end
  local status = found.status
  if status and sub(text, status.from, status.to) == '"offline"' then text = set_field(text, 'status', '"available"') end
  return set_field(text, 'last_heartbeat', '"' .. stamp .. '"')
end

local refusal = overtaken()
if refusal then return refusal end
local records, results = read_all(), {}
for i = 1, #KEYS do
  local record = records[i]
  local patched = record and beaten(record)
  if patched then store(KEYS[i], patched, ttl) end
  results[i] = patched and 1 or record and CORRUPT or missing(KEYS[i])
end
return results
