-- What every script shares: the server's time as text, and a record's JSON patched in place, every other byte kept.
-- Prepended to each script.

local call, find, sub, byte, match = redis.call, string.find, string.sub, string.byte, string.match

-- Outcomes for one agent, beside 1 for done. SLOW: left for the script that does the rest. AGAIN: not done yet, since
-- this call has done as much as one may; to be sent again.
local ABSENT, CORRUPT, WRONG_TYPE, TOO_LARGE, SLOW, AGAIN = 0, -1, -2, -3, -4, -5

-- The records of all keys, false where there is none; `missing` tells why.
local function read_all()
  return call('MGET', unpack(KEYS))
end

-- Stores a record for its full time to live in milliseconds, 0 for ever.
local function store(key, record, ttl)
  if ttl ~= '0' then call('PSETEX', key, ttl, record) else call('SET', key, record) end
end

-- Why a key has no record. PERSIST changes nothing here, but a replica refuses it: one that is out of date must not say
-- that an agent is absent.
local function missing(key)
  if call('TYPE', key).ok ~= 'none' then return WRONG_TYPE end
  call('PERSIST', key)
  return ABSENT
end

-- The server's time as 2026-11-23T08:00:00.123456Z, whose text order is time order.
-- Days to date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
local function now()
  local time = call('TIME')
  local seconds, floor = tonumber(time[1]), math.floor
  local days = floor(seconds / 86400)
  local of_day = seconds - days * 86400
  local shifted = days + 719468
  local era = floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local year_of_era = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524) - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year_of_era + floor(year_of_era / 4) - floor(year_of_era / 100))
  local march_month = floor((5 * of_year + 2) / 153)
  local month = march_month < 10 and march_month + 3 or march_month - 9
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ',
    year_of_era + era * 400 + (month <= 2 and 1 or 0), month, of_year - floor((153 * march_month + 2) / 5) + 1,
    floor(of_day / 3600), floor(of_day / 60) % 60, of_day % 60, tonumber(time[2]))
end

-- The position of the quote that closes a string; `from` is just after the one that opens it.
local function string_end(text, from)
  while true do
    local at, _, char = find(text, '(["\\])', from)
    if not at or char == '"' then return at end
    from = at + 2
  end
end

-- The position of the bracket that closes the object or array opened at `from`.
local function nested_end(text, from)
  local depth, at, _, char = 0, from, nil, nil
  while true do
    at, _, char = find(text, '(["{}%[%]])', at)
    if not at then return nil end
    if char == '"' then
      at = string_end(text, at + 1)
      if not at then return nil end
    elseif char == '{' or char == '[' then
      depth = depth + 1
    else
      depth = depth - 1
      if depth == 0 then return at end
    end
    at = at + 1
  end
end

-- The last position of the JSON value that begins at `from`.
local function value_end(text, from)
  local char = sub(text, from, from)
  if char == '"' then return string_end(text, from + 1) end
  if char == '{' or char == '[' then return nested_end(text, from) end
  local _, to = find(text, '^[%w.+-]+', from)
  return to
end

-- The top-level fields of a JSON object, by name: where the key begins and where the value begins and ends. Of a name
-- written twice the last counts, as for every reader. nil when the text is no such object. Second: where it closes.
-- Third: every field of the name `wanted`, in order.
local function fields(text, wanted)
  local found, every = {}, {}
  local at = match(text, '^%s*{%s*()')
  if not at then return nil end
  local closing = match(text, '^}()', at)
  while not closing do
    if byte(text, at) ~= 34 then return nil end
    local key_end = string_end(text, at + 1)
    if not key_end then return nil end
    local name = sub(text, at + 1, key_end - 1)
    if find(name, '\\', 1, true) then
      local known, list = pcall(cjson.decode, '["' .. name .. '"]')
      if not known then return nil end
      name = list[1]
    end
    local from = match(text, '^%s*:%s*()', key_end + 1)
    local to = from and value_end(text, from)
    if not to then return nil end
    found[name] = {key = at, from = from, to = to}
    if name == wanted then every[#every + 1] = found[name] end
    local next_at = match(text, '^%s*,%s*()', to + 1)
    if next_at then at = next_at else
      closing = match(text, '^%s*}()', to + 1)
      if not closing then return nil end
    end
  end
  if not find(text, '^%s*$', closing) then return nil end
  return found, closing - 1, every
end

-- The order of the fields in a record that nobody else has written to.
local ORDER = {'id', 'name', 'capabilities', 'status', 'last_heartbeat', 'current_load', 'max_load', 'metadata'}

-- The record with one top-level field set to a JSON text: replaced where it stands, else put in its place in the order.
-- nil when the record is no JSON object.
local function set_field(text, name, json)
  local found, closing = fields(text)
  if not found then return nil end
  local field = found[name]
  if field then return sub(text, 1, field.from - 1) .. json .. sub(text, field.to + 1) end
  local entry, later = '"' .. name .. '":' .. json, false
  for _, other in ipairs(ORDER) do
    if later and found[other] then
      local at = found[other].key
      return sub(text, 1, at - 1) .. entry .. ',' .. sub(text, at)
    end
    later = later or other == name
  end
  return sub(text, 1, closing - 1) .. (next(found) and ',' or '') .. entry .. sub(text, closing)
end

-- The record without one top-level field, however often it is written: all in one pass, for the server does nothing else
-- meanwhile. nil when the record is no JSON object.
local function drop_field(text, name)
  local found, _, every = fields(text, name)
  if not found then return nil end
  local kept, from = {}, 1
  for _, field in ipairs(every) do
    kept[#kept + 1] = sub(text, from, field.key - 1)
    local following = match(text, '^%s*,%s*()', field.to + 1)
    from = following or field.to + 1
    -- The object's last field: the comma before it goes.
    if not following then kept = {(string.gsub(table.concat(kept), ',%s*$', ''))} end
  end
  return table.concat(kept) .. sub(text, from)
end

-- Whether a record's id is the one that its key ends with; one that is not is nobody's.
local function names_its_key(text, key)
  local found = fields(text)
  local id = found and found.id
  if not id or byte(text, id.from) ~= 34 then return false end
  local known, list = pcall(cjson.decode, '[' .. sub(text, id.from, id.to) .. ']')
  local ending = known and ':agent:' .. list[1]
  return known and sub(key, -#ending) == ending
end

-- Where status and last_heartbeat stand in the plain form that this library and the Go original write,
-- ...,"status":"S","last_heartbeat":"T",... : the first and last position of S and of T. nil for any other form.
-- In JSON an unescaped ,"status":" is always a key with a text value, never part of a string. It is a top-level one when
-- no object is opened before it, and the one that counts when no other follows.
local function plain(text)
  local status_end, key_end = find(text, '","last_heartbeat":"', 2, true)
  if not status_end or byte(text, 1) ~= 123 or byte(text, -1) ~= 125 then return nil end
  local status_from
  if sub(text, status_end - 20, status_end - 1) == ',"status":"available' then
    status_from = status_end - 9
  elseif sub(text, status_end - 18, status_end - 1) == ',"status":"offline' then
    status_from = status_end - 7
  elseif sub(text, status_end - 15, status_end - 1) == ',"status":"busy' then
    status_from = status_end - 4
  else
    return nil
  end
  local heartbeat_end = find(text, '"', key_end + 1, true)
  local nested = find(text, '{', 2, true)
  if not heartbeat_end or byte(text, heartbeat_end - 1) == 92 or nested and nested < status_end then return nil end
  if find(text, '"status"', heartbeat_end, true) or find(text, '"last_heartbeat"', heartbeat_end, true) then return nil end
  return status_from, status_end - 1, key_end + 1, heartbeat_end - 1
end
