-- Parses records as JSON (RFC 8259), validates them, and changes fields while keeping every other byte.
-- `agentic/wire.py` accepts and refuses the same records; tests compare the two.
-- `scripts.py` prepends FIELDS: the name and kind of each field of a record, in the order in which this library writes
-- them.

local MAX_DEPTH, MAX_DIGITS = 64, 4300

-- --- parsing ---
-- Parsing works on a copy of the same length in which every escape is replaced by `_` characters, so that a string ends at
-- the next quote. Each function returns the position after the value that begins at `at`; nil if it is invalid.

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

local after_nested

-- `depth`: how many more levels of objects and arrays are allowed.
local function after_value(text, at, depth)
  local char = byte(text, at)
  if char == 34 then return match(text, '^"[]-\255#-[ !]*"()', at) end
  if char == 91 or char == 123 then return depth > 0 and after_nested(text, at, char + 2, depth - 1) or nil end
  local word, next_at = match(text, '^([%w.+-]+)()', at)
  return word and (WORDS[word] or is_number(word)) and next_at or nil
end

function after_nested(text, at, close, depth)
  at = match(text, '^[ \t\r\n]*()', at + 1)
  if byte(text, at) == close then return at + 1 end
  while true do
    if close == 125 then at = match(text, '^"[]-\255#-[ !]*"[ \t\r\n]*:[ \t\r\n]*()', at) end
    at = at and after_value(text, at, depth)
    if not at then return nil end
    local separator
    at, separator = match(text, '^[ \t\r\n]*()([],}])', at)
    if separator ~= ',' then return separator and byte(separator) == close and at + 1 or nil end
    at = match(text, '^[ \t\r\n]*()', at + 1)
  end
end

-- --- validation ---

local IS_FIELD = {}
for _, field in ipairs(FIELDS) do IS_FIELD[field[1]] = true end

-- Decodes a JSON string.
local function decoded(json)
  return find(json, '\\', 1, true) and cjson.decode('[' .. json .. ']')[1] or sub(json, 2, -2)
end

-- Returns the known fields of a record, in their order (`fields`) and by name, the last one of each (`named`); and the
-- position of the closing brace. Each field has its name, the position of its key, and the first and last position of its
-- value. nil if the text is not a JSON object.
local function parsed(text)
  local plain = without_escapes(text)
  if not plain or find(plain, '[\128-\255]') and not is_utf8(plain) then return nil end
  local record = {plain = plain, fields = {}, named = {}}
  local at = match(plain, '^[ \t\r\n]*{[ \t\r\n]*()')
  while at do
    local key_end, from = match(plain, '^"[]-\255#-[ !]*"()[ \t\r\n]*:[ \t\r\n]*()', at)
    local next_at = from and after_value(plain, from, MAX_DEPTH - 1)
    if not next_at then return nil end
    local name = decoded(sub(text, at, key_end - 1))
    if IS_FIELD[name] then
      local field = {name = name, key = at, from = from, to = next_at - 1}
      record.fields[#record.fields + 1], record.named[name] = field, field
    end
    at = match(plain, '^[ \t\r\n]*,[ \t\r\n]*()', next_at)
    if not at then
      record.close = match(plain, '^[ \t\r\n]*()}[ \t\r\n]*$', next_at)
      return record.close and record
    end
  end
end

-- RFC 3339 with an offset, as msgspec accepts it: also a space for the T, no colon in the offset, any number of decimals.
local function is_instant(text)
  local year, month, day, hour, minute, second, rest =
    match(text, '^(%d%d%d%d)%-(%d%d)%-(%d%d)[Tt ](%d%d):(%d%d):(%d%d)(.*)$')
  if not year or not is_date(year, month, day) then return false end
  if tonumber(hour) > 23 or tonumber(minute) > 59 or tonumber(second) > 59 then return false end
  -- Would be rounded up into the year 10000.
  if find(text, '^9999%-12%-31.23:59:59%.999999[5-9]') then return false end
  local offset = match(rest, '^%.%d+(.*)$') or rest
  if offset == 'Z' or offset == 'z' then return true end
  local hours, minutes = match(offset, '^[+-](%d%d):?(%d%d)$')
  return hours and tonumber(hours) < 24 and tonumber(minutes) < 60
end

local function is_array_of_strings(plain, array)
  local at = match(plain, '^%[[ \t\r\n]*()', array.from)
  while at and at < array.to do at = match(plain, '^"[]-\255#-[ !]*"[ \t\r\n]*[],][ \t\r\n]*()', at) end
  return at
end

-- Returns the text of a string field; nil if the field is absent or not a string.
local function text_of(text, field)
  return field and byte(text, field.from) == 34 and decoded(sub(text, field.from, field.to)) or nil
end

-- For each kind: whether a value, not null, is valid. An instant may be the empty text.
local IS_VALUE = {
  text = function(text, field) return byte(text, field.from) == 34 end,
  texts = function(text, field, plain) return byte(text, field.from) == 91 and is_array_of_strings(plain, field) end,
  instant = function(text, field)
    local instant = text_of(text, field)
    return instant and (instant == '' or is_instant(instant))
  end,
  number = function(text, field) return find(sub(text, field.from, field.to), '^%-?%d+$') end,
  entries = function(text, field) return byte(text, field.from) == 123 end,
  any = function() return true end,
  incarnation = function() return true end,
}
IS_VALUE.status = IS_VALUE.text

-- True if a record is valid and its id matches its key. Any field except the id may be absent or null.
local function is_agent(text, record, key)
  if text_of(text, record.named.id) ~= sub(key, ID_AT) then return false end
  for _, each in ipairs(FIELDS) do
    local field = record.named[each[1]]
    if field and byte(text, field.from) ~= 110 and not IS_VALUE[each[2]](text, field, record.plain) then return false end
  end
  return true
end

-- Returns the incarnation in a record that `parsed` returned.
local function stored_incarnation(text, record)
  local field = record.named.incarnation
  return believed(field and sub(text, field.from, field.to))
end

-- Returns the incarnation in a record of any form; '0' if it is corrupt.
local function incarnation_in(text)
  local found = incarnation_at_end(text)
  if found or not find(text, 'incarnation', 1, true) and not find(text, '\\', 1, true) then return found or '0' end
  parsed_bytes = parsed_bytes + #text
  local record = parsed(text)
  return record and stored_incarnation(text, record) or '0'
end

-- Returns a record like `parsed`; nil if it is not a valid agent.
local function agent_record(text, key)
  parsed_bytes = parsed_bytes + #text
  local record = parsed(text)
  return record and is_agent(text, record, key) and record or nil
end

-- --- changing a record ---

-- Returns the JSON entries of new fields: those to insert before an existing field, by that field, and those to append.
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

-- Returns the record with fields set to the given JSON texts, or removed for ''. If a field occurs more than once, sets the
-- last occurrence, or removes all of them. nil if the result would be too long to read.
local function changed(text, record, changes)
  local before, last = additions(record, changes)
  local parts, from = {}, 1
  -- Appends the unchanged text before `position`, then `entry`; continues at `next_at`.
  local function add(position, entry, next_at)
    parts[#parts + 1] = sub(text, from, position - 1)
    parts[#parts + 1] = entry
    from = next_at
  end
  for _, field in ipairs(record.fields) do
    local json = changes[field.name]
    if before[field] then add(field.key, before[field], field.key) end
    if json == '' then
      local next_at = match(text, '^[ \t\r\n]*,[ \t\r\n]*()', field.to + 1)
      add(field.key, '', next_at or field.to + 1)
      -- The object's last field has no comma after it: remove the one before it.
      if not next_at then parts = {(gsub(table.concat(parts), ',[ \t\r\n]*$', ''))} end
    elseif json and record.named[field.name] == field then
      add(field.from, json, field.to + 1)
    end
  end
  add(record.close, last, record.close)
  local result = table.concat(parts) .. sub(text, from)
  return #result <= MAX_STORED_BYTES and result or nil
end
