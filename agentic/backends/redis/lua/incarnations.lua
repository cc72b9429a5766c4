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

-- Returns the incarnation at the end of a record; nil if there is none.
local function incarnation_at_end(record)
  return sub(record, -32, -18) == AT_END and find(record, '^%d+}$', -17) and believed(sub(record, -17, -2)) or nil
end
