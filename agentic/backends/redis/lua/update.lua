-- Changes fields of agents; keeps the heartbeat and the remaining time to live.
-- KEYS   one per agent
-- ARGV   1: the maximum size of a record in bytes; then per agent the number of fields, and per field its name and new
--        JSON, or '' to remove it
-- return per agent {the changed record, the server's time}; ABSENT, CORRUPT, WRONG_TYPE or {TOO_LARGE, size} with nothing
--        changed; or AGAIN

local limit, stamp = tonumber(ARGV[1]), now()

local function changes_of_all()
  local all, at = {}, 2
  for i = 1, #KEYS do
    local changes, last = {}, at + 2 * tonumber(ARGV[at])
    for name = at + 1, last, 2 do changes[ARGV[name]] = ARGV[name + 1] end
    all[i], at = changes, last + 1
  end
  return all
end

local changes = changes_of_all()

local refusal = overtaken()
if refusal then return refusal end

return for_each_record(#KEYS, function(key, record, i)
  if not record then return missing(key) end
  local found = agent_record(record, key)
  local text = found and changed(record, found, changes[i])
  if not text then return CORRUPT end
  if #text > limit and #text > #record then return {TOO_LARGE, #text} end
  write(key, text)
  return {text, stamp}
end)
