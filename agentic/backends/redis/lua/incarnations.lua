-- Incarnations: see `agentic/incarnations.py`. Here they are texts of 16 digits, whose order is the order of the numbers, and
-- '0'. Lua's own conversion of numbers would round them.

local stamp, micros = now()

local function incarnation_text(number)
  return string.format('%.0f', number)
end

-- The highest one that is believed.
local LATEST = incarnation_text(micros + 366 * 86400000000)

-- Records of this library end with it.
local AT_END = ',"incarnation":'

-- Returns an incarnation, given what is stored; '0' if that is not one, or is not believed.
local function believed(text)
  return text and #text == 16 and find(text, '^[1-9]%d+$') and text <= LATEST and text or '0'
end

-- Stands for any incarnation in a list of them.
local ANY = '9999999999999999'

-- Returns an incarnation from a JSON list of them; '0' for ANY, or if there is no list.
local function listed(list, i)
  local text = list and sub(list, 17 * i - 15, 17 * i)
  return text ~= ANY and text or '0'
end

-- Returns the incarnation at the end of a record; nil if there is none that is believed.
local function incarnation_at_end(record)
  local text = match(record, '^,"incarnation":(%d+)}$', -32)
  return believed(text) ~= '0' and text or nil
end
