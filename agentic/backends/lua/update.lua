-- Changes fields of agents; heartbeat and remaining time to live stay as they are.
-- KEYS   one per agent
-- ARGV   1: the longest record allowed, in bytes; then per agent: how many fields, and per field its name and its new
--        JSON, or '' to leave the field out
-- return per agent {the changed record, the server's time}, or ABSENT, CORRUPT, WRONG_TYPE or {TOO_LARGE, size} with nothing changed

local limit, at, stamp = tonumber(ARGV[1]), 2, now()

local refusal = overtaken()
if refusal then return refusal end
local records, results = read_all(), {}
for i = 1, #KEYS do
  local text = records[i]
  if text and not names_its_key(text, KEYS[i]) then text = nil end
  local last = at + 2 * tonumber(ARGV[at])
  for name = at + 1, last, 2 do
    local json = ARGV[name + 1]
    text = text and (json == '' and drop_field(text, ARGV[name]) or json ~= '' and set_field(text, ARGV[name], json))
  end
  at = last + 1
  if not text then
    results[i] = records[i] and CORRUPT or missing(KEYS[i])
  elseif #text > limit and #text > #records[i] then
    results[i] = {TOO_LARGE, #text}
  else
    call('SET', KEYS[i], text, 'KEEPTTL')
    results[i] = {text, stamp}
  end
end
return results
