-- Records as JSON (RFC 8259): which are an agent's, and how they are changed with every other byte kept.
-- `agentic/wire.py` reads the same ones and refuses the same ones; its tests compare the two.

local gsub, gmatch = string.gsub, string.gmatch

local MAX_DEPTH, MAX_STORED_BYTES, MAX_DIGITS = 64, 131072, 4300
local SPACE = '^[ \t\r\n]*()'

-- The forms of UTF-8 (RFC 3629) with more than one byte. None can begin inside another one.
local UTF8 = {
  '[\194-\223][\128-\191]', '\224[\160-\191][\128-\191]', '[\225-\236\238\239][\128-\191][\128-\191]',
  '\237[\128-\159][\128-\191]', '\240[\144-\191][\128-\191][\128-\191]',
  '[\241-\243][\128-\191][\128-\191][\128-\191]', '\244[\128-\143][\128-\191][\128-\191]',
}

local known_runs = {}

local function is_utf8_run(run)
  if known_runs[run] == nil then
    local left = run
    for _, form in ipairs(UTF8) do
      -- A space, so that no two parts that are left become one.
      left = gsub(left, form, ' ')
      known_runs[run] = not find(left, '[^ ]')
      if known_runs[run] then break end
    end
  end
  return known_runs[run]
end

local function is_utf8(text)
  work = work + #text
  for run in gmatch(text, '[\128-\255]+') do
    if not is_utf8_run(run) then return false end
  end
  return true
end

-- --- parsing: each function returns the last position of what begins at `from`, nil where that is not valid ---

local function string_end(text, from)
  local at = from + 1
  while true do
    at = match(text, '^[^"\\%z\1-\31]*()', at)
    local char, escape = byte(text, at, at + 1)
    if char == 34 then return at end
    if char ~= 92 or not escape then return nil end
    work = work + STEP
    if escape == 117 then
      local unit = match(text, '^%x%x%x%x', at + 2)
      if not unit then return nil end
      at, unit = at + 6, tonumber(unit, 16)
      if unit >= 0xD800 and unit < 0xE000 then
        -- One half of a pair: a high one, and a low one behind it.
        if unit >= 0xDC00 or not find(text, '^\\u[dD][c-fC-F]%x%x', at) then return nil end
        at = at + 6
      end
    elseif find('"\\/bfnrt', string.char(escape), 1, true) then
      at = at + 2
    else
      return nil
    end
  end
end

local function number_end(text, from)
  local whole, at = match(text, '^%-?(%d+)()', from)
  if not whole or #whole > 1 and byte(whole) == 48 then return nil end
  local after = match(text, '^%.%d+()', at) or at
  after = match(text, '^[eE][+-]?%d+()', after) or after
  if after == at then return #whole <= MAX_DIGITS and at - 1 or nil end
  return math.abs(tonumber(sub(text, from, after - 1))) < math.huge and after - 1 or nil
end

local nested_end

local function value_end(text, from, depth)
  work = work + STEP
  local char = byte(text, from)
  if char == 34 then return string_end(text, from) end
  if char == 123 or char == 91 then return nested_end(text, from, depth + 1) end
  local _, to = find(text, '^true', from)
  if not to then _, to = find(text, '^false', from) end
  if not to then _, to = find(text, '^null', from) end
  return to or number_end(text, from)
end

local function key_end(text, from)
  return byte(text, from) == 34 and string_end(text, from) or nil
end

function nested_end(text, from, depth)
  if depth > MAX_DEPTH then return nil end
  local is_object = byte(text, from) == 123
  local close = is_object and 125 or 93
  local at = match(text, SPACE, from + 1)
  if byte(text, at) == close then return at end
  while true do
    if is_object then
      local to = key_end(text, at)
      at = to and match(text, '^[ \t\r\n]*:[ \t\r\n]*()', to + 1)
      if not at then return nil end
    end
    local to = value_end(text, at, depth)
    if not to then return nil end
    at = match(text, SPACE, to + 1)
    if byte(text, at) == close then return at end
    if byte(text, at) ~= 44 then return nil end
    at = match(text, SPACE, at + 1)
  end
end

-- The text that a JSON string stands for.
local function decoded(json)
  return find(json, '\\', 1, true) and cjson.decode('[' .. json .. ']')[1] or sub(json, 2, -2)
end

-- The members of a record: in their order, each with its name, where it begins, and where its value begins and ends; and by
-- name, the last of each. nil where it is not a JSON object.
local function members_of(text)
  work = work + #text
  if #text > MAX_STORED_BYTES or not is_utf8(text) then return nil end
  local members, named = {}, {}
  local at = match(text, '^[ \t\r\n]*{[ \t\r\n]*()')
  if not at then return nil end
  while byte(text, at) ~= 125 or #members > 0 do
    local key_to = key_end(text, at)
    local from = key_to and match(text, '^[ \t\r\n]*:[ \t\r\n]*()', key_to + 1)
    local to = from and value_end(text, from, 1)
    if not to then return nil end
    local member = {name = decoded(sub(text, at, key_to)), key = at, from = from, to = to}
    members[#members + 1], named[member.name] = member, member
    at = match(text, SPACE, to + 1)
    if byte(text, at) ~= 44 then break end
    at = match(text, SPACE, at + 1)
  end
  if not find(text, '^}[ \t\r\n]*$', at) then return nil end
  return members, named
end

-- --- which records are an agent's ---

local DAYS = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}

local function is_date(year, month, day)
  year, month, day = tonumber(year), tonumber(month), tonumber(day)
  local leap = month == 2 and year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)
  return year > 0 and DAYS[month] and day > 0 and day <= DAYS[month] + (leap and 1 or 0)
end

-- RFC 3339 with an offset, as msgspec takes it: a space in place of the T, no colon in the offset, any digits of a second.
local function is_instant(text)
  local year, month, day, hour, minute, second, rest =
    match(text, '^(%d%d%d%d)%-(%d%d)%-(%d%d)[Tt ](%d%d):(%d%d):(%d%d)(.*)$')
  if not year or not is_date(year, month, day) then return false end
  if tonumber(hour) > 23 or tonumber(minute) > 59 or tonumber(second) > 59 then return false end
  local fraction, offset = match(rest, '^%.(%d+)(.*)$')
  -- What would be rounded up into the year 10000.
  if fraction and tonumber('0.' .. fraction) >= 0.9999995 and find(text, '^9999%-12%-31.23:59:59') then return false end
  offset = offset or rest
  if find(offset, '^[Zz]$') then return true end
  local hours, minutes = match(offset, '^[+-](%d%d):?(%d%d)$')
  return hours and tonumber(hours) < 24 and tonumber(minutes) < 60
end

-- Whether an array holds nothing but strings.
local function holds_strings(text, array)
  local at = match(text, SPACE, array.from + 1)
  while at < array.to do
    if byte(text, at) ~= 34 then return false end
    at = match(text, '^[ \t\r\n,]*()', string_end(text, at) + 1)
  end
  return true
end

-- The last position of the family in the keys of all agents of a script: no prefix holds ':agent:'.
local FAMILY_END = select(2, find(KEYS[1] or '', ':agent:', 1, true))

-- Whether the members of a record make it that of the agent whose key it has. Each may be absent or null but the id.
local function is_agent(text, named, key)
  local function first(name)
    local member = named[name]
    local char = member and byte(text, member.from)
    return char ~= 110 and char or nil
  end
  local function is(name, char) return (first(name) or char) == char end
  local function is_integer(name)
    return not first(name) or find(sub(text, named[name].from, named[name].to), '^%-?%d+$')
  end
  if first('id') ~= 34 or decoded(sub(text, named.id.from, named.id.to)) ~= sub(key, FAMILY_END + 1) then return false end
  if not (is('name', 34) and is('status', 34) and is('last_heartbeat', 34)) then return false end
  if not (is('capabilities', 91) and is('metadata', 123)) then return false end
  if not (is_integer('current_load') and is_integer('max_load')) then return false end
  if first('capabilities') and not holds_strings(text, named.capabilities) then return false end
  local heartbeat = first('last_heartbeat') and decoded(sub(text, named.last_heartbeat.from, named.last_heartbeat.to))
  return not heartbeat or heartbeat == '' or is_instant(heartbeat)
end

-- The members of a record as of `members_of`; nil where it is not an agent's.
local function agent_members(text, key)
  local members, named = members_of(text)
  if members and is_agent(text, named, key) then return members, named end
end

-- The text of a member that is a string; nil where it is absent or null.
local function text_of(text, member)
  return member and byte(text, member.from) == 34 and decoded(sub(text, member.from, member.to)) or nil
end

-- --- the usual form, recognised without parsing: every heartbeat pays for this ---
-- A record is cut at texts that are found fast, and each part is checked once, for many records have it in common.

local function remembered(check)
  local known = {}
  return function(text)
    local result = known[text]
    if result == nil then
      result = check(text) or false
      known[text] = result
    end
    return result
  end
end

-- Characters of a string without escapes. Most strings are ASCII, and looking for other ones costs more than the rest.
local ASCII, ANY = '[]-~#-[ !]*', '[]-~#-[ !\127-\255]*'

local function is_plain(text)
  return find(text, '^' .. ASCII .. '$') or find(text, '^' .. ANY .. '$') and is_utf8(text)
end

-- Whether a text is made of items that match a pattern, with a comma between each two.
local function is_list(text, item)
  local shape, count = gsub(text, item, 's')
  if #shape ~= 2 * count - 1 or byte(shape) ~= 115 then return false end
  return not find(shape, '[^s,]') and not find(shape, 'ss', 1, true)
end

local STRINGS = {'"' .. ASCII .. '"', '"' .. ANY .. '"'}
local ENTRIES = {STRINGS[1] .. ':' .. STRINGS[1], STRINGS[2] .. ':' .. STRINGS[2]}

local function is_list_of(text, items)
  return is_list(text, items[1]) or is_list(text, items[2]) and is_utf8(text)
end

-- The length of the status at the end of what stands between name and last_heartbeat.
local status_length = remembered(function(text)
  local list, status = match(text, '^","capabilities":%[(.*)%],"status":"(%l+)$')
  if list then return is_list_of(list, STRINGS) and #status end
  status = match(text, '^","status":"(%l+)$')
  return status and #status
end)

local is_stamp = remembered(function(text)
  return find(text, '^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%d%d%d%dZ$') and is_instant(text)
end)

local is_loads = remembered(function(text)
  local load, most = match(text, '^","current_load":(%d+),"max_load":(%d+)$')
  return load and #load < 20 and #most < 20 and not find(load, '^0.') and not find(most, '^0.')
end)

local is_rest = remembered(function(text)
  local entries = match(text, '^,"metadata":{(.*)}}$')
  return text == '}' or entries and is_list_of(entries, ENTRIES)
end)

-- Where the text of last_heartbeat begins, and that of status begins and ends, in a record that has the form in which this
-- library writes one, and nothing that is escaped; nil for every other record, whether valid or not.
local function usual(text, key)
  local id, name = match(text, '^{"id":"([^"\\]*)","name":"()')
  if not id or id ~= sub(key, FAMILY_END + 1) or not is_plain(id) then return nil end
  local name_end = find(text, '"', name, true)
  local status_end, before = find(text, '","last_heartbeat":"', name_end or #text, true)
  if not status_end or name_end > name and not is_plain(sub(text, name, name_end - 1)) then return nil end
  local length = status_length(sub(text, name_end, status_end - 1))
  if not length or not is_stamp(sub(text, before + 1, before + 27)) then return nil end
  local rest = find(text, ',"metadata":{', before + 28, true) or #text
  if not is_loads(sub(text, before + 28, rest - 1)) or not is_rest(sub(text, rest)) then return nil end
  return before + 1, status_end - length, status_end - 1
end

-- --- changing a record ---

-- The order of the fields in a record that nobody else has written to.
local ORDER = {'id', 'name', 'capabilities', 'status', 'last_heartbeat', 'current_load', 'max_load', 'metadata'}

-- The entries of changes for fields that the record does not have, by the place of the member that they go before.
local function additions(members, named, changes)
  local place_of, before = {}, {}
  for place, member in ipairs(members) do place_of[member] = place end
  for rank, name in ipairs(ORDER) do
    local json = changes[name]
    if json and json ~= '' and not named[name] then
      local place = #members + 1
      for later = #ORDER, rank + 1, -1 do
        if named[ORDER[later]] then place = place_of[named[ORDER[later]]] end
      end
      before[place] = before[place] or {}
      table.insert(before[place], '"' .. name .. '":' .. json)
    end
  end
  return before
end

-- The record with fields set to JSON texts, or left out where that is ''. Of a field written more than once the last one
-- is set, and all are left out. nil where it would become too long to be read.
local function changed(text, members, named, changes)
  local before, parts = additions(members, named, changes), {sub(text, 1, members[1].key - 1)}
  local function add(entry, gap)
    if #parts > 1 then parts[#parts + 1] = gap end
    parts[#parts + 1] = entry
  end
  for place = 1, #members + 1 do
    for _, entry in ipairs(before[place] or {}) do add(entry, ',') end
    local member, previous = members[place], members[place - 1]
    local json = member and changes[member.name]
    if member and json ~= '' then
      local set = json and named[member.name] == member
      local entry = set and sub(text, member.key, member.from - 1) .. json or sub(text, member.key, member.to)
      add(entry, previous and sub(text, previous.to + 1, member.key - 1) or ',')
    end
  end
  parts[#parts + 1] = sub(text, members[#members].to + 1)
  local record = table.concat(parts)
  return #record <= MAX_STORED_BYTES and record or nil
end
