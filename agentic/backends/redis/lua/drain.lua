-- Orders that agents are drained, or ends that.
-- KEYS   one per agent; then the key of the drains
-- ARGV   per agent the JSON of its order without its times and its closing brace, '' to end it, and after how many
--        microseconds it ends, 0 for never
-- return per agent the order as stored, or for the end of one whether there was one; or AGAIN

local refusal = overtaken()
if refusal then return refusal end

local function ends_after(microseconds)
  if microseconds == '0' then return '' end
  local at = micros + tonumber(microseconds)
  local seconds = math.floor(at / 1000000)
  return ',"ends_at":"' .. instant(seconds, at - seconds * 1000000) .. '"'
end

local function mark(key, record)
  if usual(record, key) then return write(key, usual_with_mark(record)) end
  local found = agent_record(record, key)
  local text = found and changed(record, found, {marked = 'true'})
  if text then write(key, text) end
end

return for_each_record(#KEYS, function(key, record, i)
  local order, id = ARGV[2 * i - 1], sub(key, ID_AT)
  if order == '' then
    local was_there = drain_of(key) ~= ''
    call('HDEL', DRAINS, id)
    return was_there and 1 or 0
  end
  local drain = order .. ',"drained_at":"' .. stamp .. '"' .. ends_after(ARGV[2 * i]) .. '}'
  call('HSET', DRAINS, id, drain)
  if record then mark(key, record) end
  return drain
end)
