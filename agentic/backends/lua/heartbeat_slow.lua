-- Does what heartbeat.lua does for records that need more than a stamp in place: turns offline agents available, writes
-- the stamp into any form of record, and finds out why there is none.
-- KEYS   one per agent
-- ARGV   1: time to live in milliseconds, 0 for none
-- return per agent 1, or ABSENT, CORRUPT or WRONG_TYPE with nothing changed, or AGAIN

local ttl, stamp = ARGV[1], now()

local function stamped(record, key)
  local heartbeat, status, status_end = usual(record, key)
  if heartbeat and sub(record, status, status_end) == 'offline' then
    return sub(record, 1, status - 1) .. 'available","last_heartbeat":"' .. stamp .. sub(record, heartbeat + #stamp)
  end
  local members, named = agent_members(record, key)
  if not members then return nil end
  local changes = {last_heartbeat = '"' .. stamp .. '"'}
  if text_of(record, named.status) == 'offline' then changes.status = '"available"' end
  return changed(record, members, named, changes)
end

local refusal = overtaken()
if refusal then return refusal end

return for_each_record(#KEYS, function(i, record)
  if not record then return missing(KEYS[i]) end
  local text = stamped(record, KEYS[i])
  if not text then return CORRUPT end
  store(KEYS[i], text, ttl)
  return 1
end)
