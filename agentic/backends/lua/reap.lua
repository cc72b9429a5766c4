-- Marks agents offline, each only if its heartbeat is still the one that was found stale; the remaining time to live stays.
-- KEYS   one per agent; then where to write which agents were marked
-- ARGV   per agent the JSON of the last_heartbeat that was found, '' where the record had none; then a token of the call
-- return per agent 1 where this call marked it, else 0

local function marked(text, heartbeat)
  local status_from, status_to, from, to = plain(text)
  if status_from then
    if sub(text, from - 1, to + 1) ~= heartbeat or sub(text, status_from, status_to) == 'offline' then return nil end
    return sub(text, 1, status_from - 1) .. 'offline' .. sub(text, status_to + 1)
  end
  local found = fields(text)
  if not found then return nil end
  local field, status = found.last_heartbeat, found.status
  if (field and sub(text, field.from, field.to) or '') ~= heartbeat then return nil end
  if status and sub(text, status.from, status.to) == '"offline"' then return nil end
  return set_field(text, 'status', '"offline"')
end

local refusal = overtaken()
if refusal then return refusal end
local marks, token, marked_keys = table.remove(KEYS), table.remove(ARGV), {}
local records, results = read_all(), {}
for i = 1, #KEYS do
  local text = records[i] and marked(records[i], ARGV[i])
  if text then
    call('SET', KEYS[i], text, 'KEEPTTL')
    marked_keys[#marked_keys + 1] = KEYS[i]
  end
  results[i] = text and 1 or 0
end
if #marked_keys > 0 then call('SET', marks, cjson.encode({token, marked_keys}), 'EX', 3600) end
return results
