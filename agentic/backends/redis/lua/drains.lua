-- Drains: operators' orders by agent, in a hash of the family, as the JSON of `agentic.agent.Drain`. Its key follows those of
-- the agents, before the registry object's own. The record of an agent that may be drained is marked, so that its heartbeats
-- look here.

local DRAINS = table.remove(KEYS)

-- Returns the order for an agent; '' if there is none. Removes one that has ended.
local function drain_of(key)
  local id = sub(key, ID_AT)
  local drain = call('HGET', DRAINS, id) or ''
  local ends_at = match(drain, '"ends_at":"([^"]+)"}$')
  if ends_at and ends_at <= stamp then
    call('HDEL', DRAINS, id)
    return ''
  end
  return drain
end

-- Returns a record of the usual form with a mark, unless that makes it too long to be read.
local function usual_with_mark(record)
  return #record + 14 <= MAX_STORED_BYTES and sub(record, 1, -2) .. ',"marked":true}' or record
end
