-- Sends heartbeats that heartbeat.lua skips: makes offline agents available, stamps records of any valid form, and reports
-- why a key has no valid record.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none
-- return per agent 1; ABSENT, CORRUPT or WRONG_TYPE with nothing changed; or AGAIN

local ttl, stamp = ARGV[1], now()

local function stamped(record, key)
  local heartbeat, status = usual(record, key)
  if status == 'offline' then
    return sub(record, 1, heartbeat - #BEFORE - #status - 1) .. 'available' .. BEFORE .. stamp
      .. sub(record, heartbeat + #stamp)
  end
  local found = agent_record(record, key)
  if not found then return nil end
  local changes = {last_heartbeat = '"' .. stamp .. '"'}
  if text_of(record, found.named.status) == 'offline' then changes.status = '"available"' end
  return changed(record, found, changes)
end

local refusal = overtaken()
if refusal then return refusal end

return for_each_record(#KEYS, function(key, record)
  if not record then return missing(key) end
  local text = stamped(record, key)
  if not text then return CORRUPT end
  write(key, text, ttl)
  return 1
end)
