-- Records as JSON (RFC 8259): which are an agent's, and how they are changed with every other byte kept.
-- `agentic/wire.py` reads the same ones and refuses the same ones; its tests compare the two.
-- FIELDS, which `scripts.py` puts before this: the name and the kind of each field of an agent, in the order in which they
-- are written in a record that nobody else has written to.

local MAX_DEPTH, MAX_DIGITS = 64, 4300

-- --- parsing ---
-- What is parsed is a copy of the text, of the same length, in which `_` stands for each character of every escape: there
-- a string ends at the next quote. Each function returns the position behind what begins at `at`; nil where it is wrong.

local UNESCAPED = {['"'] = '__', ['\\'] = '__', ['/'] = '__', b = '__', f = '__', n = '__', r = '__', t = '__'}

local function without_escapes(text)
  if not find(text, '\\', 1, true) then return text end
  text = gsub(text, '\\(.)', UNESCAPED)
  if find(text, '\\u', 1, true) then
    text = gsub(text, '\\u[dD][89abAB]%x%x\\u[dD][c-fC-F]%x%x', '____________')
    text = gsub(text, '\\u[0-9a-cA-CeEfF]%x%x%x', '______')
    text = gsub(text, '\\u[dD][0-7]%x%x', '______')
  end
  return not find(text, '\\', 1, true) and text or nil
end

local WORDS = {['0'] = true, ['true'] = true, ['false'] = true, ['null'] = true}

local function is_number(word)
  local whole, rest = match(word, '^%-?(%d+)(.*)$')
  if not whole or #whole > 1 and byte(whole) == 48 then return false end
  if rest == '' then return #whole <= MAX_DIGITS end
  if not (find(rest, '^%.%d+$') or find(rest, '^%.%d+[eE][+-]?%d+$') or find(rest, '^[eE][+-]?%d+$')) then return false end
  return math.abs(tonumber(word)) < math.huge
end

local behind_nested

-- `depth`: how many more objects and arrays may be nested here.
local function behind_value(text, at, depth)
  local char = byte(text, at)
  if char == 34 then return match(text, '^"[]-\255#-[ !]*"()', at) end
  if char == 91 or char == 123 then return depth > 0 and behind_nested(text, at, char + 2, depth - 1) or nil end
  local word, behind = match(text, '^([%w.+-]+)()', at)
  return word and (WORDS[word] or is_number(word)) and behind or nil
end

function behind_nested(text, at, close, depth)
  at = match(text, '^[ \t\r\n]*()', at + 1)
  if byte(text, at) == close then return at + 1 end
  while true do
    if close == 125 then at = match(text, '^"[]-\255#-[ !]*"[ \t\r\n]*:[ \t\r\n]*()', at) end
    at = at and behind_value(text, at, depth)
    if not at then return nil end
    local mark
    at, mark = match(text, '^[ \t\r\n]*()([],}])', at)
    if mark ~= ',' then return mark and byte(mark) == close and at + 1 or nil end
    at = match(text, '^[ \t\r\n]*()', at + 1)
  end
end

-- --- which records are an agent's ---

local IS_FIELD = {}
for _, field in ipairs(FIELDS) do IS_FIELD[field[1]] = true end

-- The text that a JSON string stands for.
local function decoded(json)
  return find(json, '\\', 1, true) and cjson.decode('[' .. json .. ']')[1] or sub(json, 2, -2)
end

-- A record's fields that are an agent's, in the order in which they are written, and by name the last of each: its name,
-- where it begins, and where its value begins and ends. And where the object ends. nil where the text is not an object.
local function parsed(text)
  local plain = without_escapes(text)
  if not plain or find(plain, '[\128-\255]') and not is_utf8(plain) then return nil end
  local record = {plain = plain, fields = {}, named = {}}
  local at = match(plain, '^[ \t\r\n]*{[ \t\r\n]*()')
  while at do
    local key_behind, from = match(plain, '^"[]-\255#-[ !]*"()[ \t\r\n]*:[ \t\r\n]*()', at)
    local behind = from and behind_value(plain, from, MAX_DEPTH - 1)
    if not behind then return nil end
    local name = decoded(sub(text, at, key_behind - 1))
    if IS_FIELD[name] then
      local field = {name = name, key = at, from = from, to = behind - 1}
      record.fields[#record.fields + 1], record.named[name] = field, field
    end
    at = match(plain, '^[ \t\r\n]*,[ \t\r\n]*()', behind)
    if not at then
      record.close = match(plain, '^[ \t\r\n]*()}[ \t\r\n]*$', behind)
      return record.close and record
    end
  end
end

-- RFC 3339 with an offset, as msgspec takes it: a space in place of the T, no colon in the offset, any digits of a second.
local function is_instant(text)
  local year, month, day, hour, minute, second, rest =
    match(text, '^(%d%d%d%d)%-(%d%d)%-(%d%d)[Tt ](%d%d):(%d%d):(%d%d)(.*)$')
  if not year or not is_date(year, month, day) then return false end
  if tonumber(hour) > 23 or tonumber(minute) > 59 or tonumber(second) > 59 then return false end
  -- What would be rounded up into the year 10000.
  if find(text, '^9999%-12%-31.23:59:59%.999999[5-9]') then return false end
  local offset = match(rest, '^%.%d+(.*)$') or rest
  if offset == 'Z' or offset == 'z' then return true end
  local hours, minutes = match(offset, '^[+-](%d%d):?(%d%d)$')
  return hours and tonumber(hours) < 24 and tonumber(minutes) < 60
end

local function holds_strings(plain, array)
  local at = match(plain, '^%[[ \t\r\n]*()', array.from)
  while at and at < array.to do at = match(plain, '^"[]-\255#-[ !]*"[ \t\r\n]*[],][ \t\r\n]*()', at) end
  return at
end

-- The text of a field that is a string; nil where it is absent or anything else.
local function text_of(text, field)
  return field and byte(text, field.from) == 34 and decoded(sub(text, field.from, field.to)) or nil
end

-- By kind: whether a value that is not null is one of that kind. An instant may be the empty text.
local IS_VALUE = {
  text = function(text, field) return byte(text, field.from) == 34 end,
  texts = function(text, field, plain) return byte(text, field.from) == 91 and holds_strings(plain, field) end,
  instant = function(text, field)
    local instant = text_of(text, field)
    return instant and (instant == '' or is_instant(instant))
  end,
  number = function(text, field) return find(sub(text, field.from, field.to), '^%-?%d+$') end,
  entries = function(text, field) return byte(text, field.from) == 123 end,
}
IS_VALUE.status = IS_VALUE.text

-- Whether a record is that of the agent whose key it has. Each field may be absent or null but the id.
local function is_agent(text, record, key)
  if text_of(text, record.named.id) ~= sub(key, ID_AT) then return false end
  for _, each in ipairs(FIELDS) do
    local field = record.named[each[1]]
    if field and byte(text, field.from) ~= 110 and not IS_VALUE[each[2]](text, field, record.plain) then return false end
  end
  return true
end

-- A record as of `parsed`; nil where it is not an agent's.
local function agent_record(text, key)
  work = work + #text
  local record = parsed(text)
  return record and is_agent(text, record, key) and record or nil
end

-- --- changing a record ---

-- The entries of changes for fields that a record does not have: by the field that they go before, and those at the end.
local function additions(record, changes)
  local before, last = {}, ''
  for rank, field in ipairs(FIELDS) do
    local name, following = field[1], nil
    local json = changes[name]
    if json and json ~= '' and not record.named[name] then
      for later = #FIELDS, rank + 1, -1 do following = record.named[FIELDS[later][1]] or following end
      local entry = '"' .. name .. '":' .. json
      if following then
        before[following] = (before[following] or '') .. entry .. ','
      else
        last = last .. ',' .. entry
      end
    end
  end
  return before, last
end

-- The record with fields set to JSON texts, or left out where that is ''. Of a field written more than once the last one
-- is set, and all are left out. nil where it would become too long to be read.
local function changed(text, record, changes)
  local before, last = additions(record, changes)
  local parts, from = {}, 1
  -- Adds what is unchanged up to a position, and a text; goes on at another position.
  local function add(position, entry, behind)
    parts[#parts + 1] = sub(text, from, position - 1)
    parts[#parts + 1] = entry
    from = behind
  end
  for _, field in ipairs(record.fields) do
    local json = changes[field.name]
    if before[field] then add(field.key, before[field], field.key) end
    if json == '' then
      local behind = match(text, '^[ \t\r\n]*,[ \t\r\n]*()', field.to + 1)
      add(field.key, '', behind or field.to + 1)
      -- Behind the object's last field there is no comma: the one before it goes.
      if not behind then parts = {(gsub(table.concat(parts), ',[ \t\r\n]*$', ''))} end
    elseif json and record.named[field.name] == field then
      add(field.from, json, field.to + 1)
    end
  end
  add(record.close, last, record.close)
  local result = table.concat(parts) .. sub(text, from)
  return #result <= MAX_STORED_BYTES and result or nil
end
