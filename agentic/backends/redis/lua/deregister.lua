-- Removes agents; their drains stay.
-- KEYS   one per agent
-- ARGV   per agent the incarnation that removes it, '0' for any
-- return per agent 1; ABSENT, WRONG_TYPE, AHEAD or {REPLACED, incarnation} with nothing changed; or AGAIN

local refusal = overtaken(true)
if refusal then return refusal end

local function remove_one(key, given)
  if call('TYPE', key).ok ~= 'string' then return missing(key) end
  if given == '0' then return remove(key) end
  local record = call('MGET', key)[1]
  -- Longer records are corrupt, so that they have no incarnation.
  local stored = #record <= MAX_STORED_BYTES and incarnation_in(record) or '0'
  return refused(given, stored) or remove(key)
end

local results = {}
for i = 1, #KEYS do
  -- Parsing takes long; what is left needs another call.
  results[i] = parsed_bytes > MAX_PARSED_BYTES and AGAIN or remove_one(KEYS[i], ARGV[i])
end
return results
