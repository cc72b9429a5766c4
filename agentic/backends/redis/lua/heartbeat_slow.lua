-- Sends heartbeats that heartbeat.lua skips: brings offline agents back, stamps records of any valid form, compares
-- incarnations, looks for drains, and reports why a key has no valid record.
-- KEYS   one per agent; then the key of the drains
-- ARGV   1: time to live in milliseconds, 0 for none; 2: the JSON list of the incarnations that send them; absent if each is
--        ANY
-- return per agent 1, plus 2 if it was offline, plus 4 if its record has lost its incarnation, or {this number, its drain};
--        ABSENT, CORRUPT, WRONG_TYPE, AHEAD or {REPLACED, incarnation} with nothing changed; or AGAIN

local ttl, incarnations = ARGV[1], ARGV[2]

-- Returns the outcome of a heartbeat that changes the record.
local function outcome(is_offline, given, stored, drain)
  local number = 1 + (is_offline and 2 or 0) + (given ~= '0' and stored == '0' and 4 or 0)
  return drain == '' and number or {number, drain}
end

local function beat_usual(key, record, given, heartbeat, status, stored)
  local refusal = refused(given, stored)
  if refusal then return refusal end
  local from = status == 'offline' and sub(record, 1, heartbeat - #BEFORE - #status - 1) .. 'available' .. BEFORE
    or sub(record, 1, heartbeat - 1)
  local text, drain = from .. stamp .. sub(record, heartbeat + #stamp), drain_of(key)
  write(key, drain == '' and text or usual_with_mark(text), ttl)
  return outcome(status == 'offline', given, stored, drain)
end

local function beat_parsed(key, record, given)
  local found = agent_record(record, key)
  if not found then return CORRUPT end
  local stored = stored_incarnation(record, found)
  local refusal = refused(given, stored)
  if refusal then return refusal end
  local drain = drain_of(key)
  local changes = {last_heartbeat = '"' .. stamp .. '"', marked = drain ~= '' and 'true' or ''}
  local is_offline = text_of(record, found.named.status) == 'offline'
  if is_offline then
    local before = found.named.before_offline
    local status = text_of(record, before) or ''
    changes.status = status ~= '' and status ~= 'offline' and sub(record, before.from, before.to) or '"available"'
    changes.before_offline = ''
  end
  local text = changed(record, found, changes)
  if not text then return CORRUPT end
  write(key, text, ttl)
  return outcome(is_offline, given, stored, drain)
end

local refusal = overtaken()
if refusal then return refusal end

return for_each_record(#KEYS, function(key, record, i)
  if not record then return missing(key) end
  local given = listed(incarnations, i)
  local heartbeat, status = usual(record, key)
  if heartbeat then return beat_usual(key, record, given, heartbeat, status, incarnation_at_end(record) or '0') end
  return beat_parsed(key, record, given)
end)
