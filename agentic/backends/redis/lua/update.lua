-- Changes fields of agents; keeps the heartbeat and the remaining time to live.
-- KEYS   one per agent
-- ARGV   1: the maximum size of a record in bytes; then per agent the incarnation that changes it, '0' for any, the number of
--        fields, and per field its name and new JSON, or '' to remove it
-- return per agent {the changed record, the server's time}; ABSENT, CORRUPT, WRONG_TYPE, AHEAD, {TOO_LARGE, size} or
--        {REPLACED, incarnation} with nothing changed; or AGAIN

local limit = tonumber(ARGV[1])

local function changes_of_all()
  local all, starts, at = {}, {}, 2
  for i = 1, #KEYS do
    local changes, last = {}, at + 1 + 2 * tonumber(ARGV[at + 1])
    for name = at + 2, last, 2 do changes[ARGV[name]] = ARGV[name + 1] end
    if changes.status then changes.before_offline = '' end
    all[i], starts[i], at = changes, ARGV[at], last + 1
  end
  return all, starts
end

local changes, starts = changes_of_all()

local refusal = overtaken()
if refusal then return refusal end

return for_each_record(#KEYS, function(key, record, i)
  if not record then return missing(key) end
  local found, given = agent_record(record, key), starts[i]
  if found then
    local stored = stored_incarnation(record, found)
    local refusal = refused(given, stored)
    if refusal then return refusal end
    -- What dropped the incarnation may have dropped the mark too; a heartbeat removes it where it is not needed.
    if given ~= '0' and stored == '0' then changes[i].incarnation, changes[i].marked = given, 'true' end
  end
  local text = found and changed(record, found, changes[i])
  if not text then return CORRUPT end
  if #text > limit and #text > #record then return {TOO_LARGE, #text} end
  write(key, text)
  return {text, stamp}
end)
