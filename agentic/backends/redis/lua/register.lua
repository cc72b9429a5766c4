-- Adds or replaces agents, stamped with the server's time, and starts their time to live.
-- KEYS   one per agent; then the key of the counter of incarnations, and that of the drains
-- ARGV   1: time to live in milliseconds, 0 for none; then per agent its record's JSON without an incarnation, with '' for no
--        heartbeat, and the incarnation that registers, or for a new one a random number below 4096
-- return per agent {the server's time, the incarnation, the last heartbeat of the record that a new start has replaced, ''
--        for none, the agent's drain, '' for none, the incarnation in that record}; WRONG_TYPE, AHEAD or {REPLACED, incarnation} with nothing changed; or AGAIN

local ttl, COUNTER = ARGV[1], table.remove(KEYS)

-- The first match is the field: within a JSON string the quotes would be escaped, and metadata follows later.
local function stamped(record)
  local _, opened = find(record, ',"last_heartbeat":"', 1, true)
  local closed = find(record, '"', opened + 1, true)
  local given = sub(record, opened + 1, closed - 1)
  if given ~= '' and given <= stamp then return record end
  return sub(record, 1, opened) .. stamp .. sub(record, closed)
end

-- Returns the last heartbeat in a record.
local function last_heartbeat_in(record, key)
  local at = usual(record, key)
  if at then return sub(record, at, at + #stamp - 1) end
  local found = agent_record(record, key)
  return found and text_of(record, found.named.last_heartbeat) or ''
end

local refusal = overtaken()
if refusal then return refusal end

-- A key of another type counts as absent, and is replaced.
local counter = redis.pcall('GET', COUNTER)
counter = believed(type(counter) == 'string' and counter)

local function register(key, record, i)
  local text, start = ARGV[2 * i], ARGV[2 * i + 1]
  if not record and call('TYPE', key).ok ~= 'none' then return WRONG_TYPE end
  local stored, replaced = record and incarnation_in(record) or '0', ''
  if #start == 16 then
    local refusal = refused(start, stored)
    if refusal and refusal ~= ABSENT then return refusal end
  else
    start = incarnation_text(math.max(tonumber(counter), tonumber(stored), micros) + 1 + tonumber(start))
    replaced = record and last_heartbeat_in(record, key) or ''
  end
  if start > counter then
    counter = start
    -- A day later the clock is ahead of it, unless a call gave a higher one.
    call('SET', COUNTER, counter, 'EX', 86400)
  end
  local written, drain = sub(stamped(text), 1, -2) .. AT_END .. start .. '}', drain_of(key)
  write(key, drain == '' and written or usual_with_mark(written), ttl)
  return {stamp, start, replaced, drain, stored}
end

return for_each_record(#KEYS, register)
