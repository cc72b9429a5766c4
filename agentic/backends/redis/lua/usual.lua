-- Recognises the usual form of a record without parsing it: as this library writes it, with no escapes.
-- Hot path: every heartbeat runs this, and every call of a script runs the definitions.

-- The multi-byte forms of UTF-8 (RFC 3629), the max frequent first. None can begin inside another.
local UTF8 = '[\194-\223][\128-\191] [\225-\236\238\239][\128-\191][\128-\191] \240[\144-\191][\128-\191][\128-\191] '
  .. '\224[\160-\191][\128-\191] \237[\128-\159][\128-\191] [\241-\243][\128-\191][\128-\191][\128-\191] '
  .. '\244[\128-\143][\128-\191][\128-\191]'

local function is_utf8(text)
  parsed_bytes = parsed_bytes + #text
  for form in string.gmatch(UTF8, '[^ ]+') do
    -- Replace by a space, so that the bytes on either side do not join.
    text = gsub(text, form, ' ')
    if not find(text, '[\128-\255]') then return true end
  end
  return false
end

local function is_date(year, month, day)
  year, month, day = tonumber(year), tonumber(month), tonumber(day)
  local days = 31
  if month == 2 then
    days = year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0) and 29 or 28
  elseif month == 4 or month == 6 or month == 9 or month == 11 then
    days = 30
  end
  return year > 0 and month > 0 and month < 13 and day > 0 and day <= days
end

-- True if a text is a list of items that match a pattern, separated by commas.
local function is_list(text, item)
  local at, size = match(text, item), #text
  while at and at <= size do
    at = byte(text, at) == 44 and match(text, item, at + 1) or nil
  end
  return at
end

local function is_list_of_strings(text)
  return is_list(text, '^"[]-\127#-[ !]*"()') or is_list(text, '^"[]-\255#-[ !]*"()') and is_utf8(text)
end

local function is_list_of_entries(text)
  return is_list(text, '^"[]-\127#-[ !]*":"[]-\127#-[ !]*"()')
    or is_list(text, '^"[]-\255#-[ !]*":"[]-\255#-[ !]*"()') and is_utf8(text)
end

-- Parts shared by many records are checked once per call: the result for each, false if it is not usual.
local middles, stamps, hours, ends, started_ends, load_parts = {}, {}, {}, {}, {}, {}

-- Returns the status, given the text between the name and last_heartbeat.
local function status_in(text)
  local closed = find(text, '],"status":"', 1, true)
  if closed then
    if sub(text, 1, 17) ~= ',"capabilities":[' or not is_list_of_strings(sub(text, 18, closed - 1)) then return false end
    text = sub(text, closed + 1)
  end
  return match(text, '^,"status":"(%l+)$') or false
end

local function is_hour(text)
  local year, month, day, hour = match(text, '^(%d%d%d%d)%-(%d%d)%-(%d%d)T(%d%d)$')
  return year and is_date(year, month, day) and tonumber(hour) < 24 or false
end

local function is_stamp(text)
  local hour = sub(text, 1, 13)
  local is_valid = hours[hour]
  if is_valid == nil then
    is_valid = is_hour(hour)
    hours[hour] = is_valid
  end
  return is_valid and find(text, '^:[0-5]%d:[0-5]%d%.%d%d%d%d%d%dZ$', 14) ~= nil
end

local function are_loads(text)
  local is_valid = load_parts[text]
  if is_valid == nil then
    local load, max = match(text, '^","current_load":(%d+),"max_load":(%d+)$')
    is_valid = load and #load < 20 and #max < 20 and not find(load, '^0.') and not find(max, '^0.') or false
    load_parts[text] = is_valid
  end
  return is_valid
end

-- True if a record may end with this text, which begins after last_heartbeat and ends before the incarnation or the brace.
local function is_end(text)
  if byte(text, -1) == 34 then -- Only unready ends with a quote. The last match is the field: metadata may have the same key.
    local before, unready = match(text, '^(.*),"unready":("[]-\255#-[ !]*")$')
    if not before or not is_list_of_strings(unready) then return false end
    text = before
  end
  local from, to = find(text, ',"metadata":{', 1, true)
  if not from then return are_loads(text) end
  return are_loads(sub(text, 1, from - 1)) and byte(text, -1) == 125 and is_list_of_entries(sub(text, to + 1, -2)) or false
end

-- True if a record may end with this text, ten digits and a brace; it ends with the first six digits of an incarnation, which
-- all that were given out within hours share.
local function is_started_end(text)
  local digits = match(sub(text, -21), '^,"incarnation":(%d+)$')
  return digits and believed(digits .. '9999999999') ~= '0' and is_end(sub(text, 1, -22)) or false
end

-- Where the id begins in each key of the call: a prefix never contains ':agent:'.
local ID_AT = #KEYS > 0 and select(2, find(KEYS[1], ':agent:', 1, true)) + 1

-- The text between the status and the value of last_heartbeat.
local BEFORE = '","last_heartbeat":"'

-- True if a record may end as it does from a position on, with or without an incarnation.
local function ends_usually(text, from)
  local tail = sub(text, from, incarnation_at_end(text) and -33 or -2)
  local is_valid = ends[tail]
  if is_valid == nil then
    is_valid = is_end(tail)
    ends[tail] = is_valid
  end
  return is_valid and byte(text, -1) == 125
end

-- Returns the position of the value of last_heartbeat, the status, and whether it ends with an incarnation, if a record has the
-- usual form; nil for any other record, valid or not.
local function usual(text, key)
  local id, from = match(text, '^{"id":"([]-\127#-[ !]*)","name":"[]-\127#-[ !]*"()')
  if not id then
    id, from = match(text, '^{"id":"([]-\255#-[ !]*)","name":"[]-\255#-[ !]*"()')
    if not id or not is_utf8(sub(text, 1, from)) then return nil end
  end
  if id ~= sub(key, ID_AT) then return nil end
  local behind, before = find(text, BEFORE, from, true)
  if not behind then return nil end
  local middle, stamp, tail = sub(text, from, behind - 1), sub(text, before + 1, before + 27), sub(text, before + 28, -12)
  local status, is_valid, is_started = middles[middle], stamps[stamp], started_ends[tail]
  if status == nil then
    status = status_in(middle)
    middles[middle] = status
  end
  if is_valid == nil then
    is_valid = is_stamp(stamp)
    stamps[stamp] = is_valid
  end
  if is_started == nil then
    is_started = is_started_end(tail)
    started_ends[tail] = is_started
  end
  is_started = is_started and find(text, '^%d+}$', -11)
  if status and is_valid and (is_started or ends_usually(text, before + 28)) then return before + 1, status, is_started end
end
