-- What every script shares. Prepended to each, with json.lua.

local call, find, sub, byte, match = redis.call, string.find, string.sub, string.byte, string.match

-- Outcomes for one agent, beside 1 for done. SLOW: left for the script that does the rest. AGAIN: not done yet, since
-- this call has done as much as one may; to be sent again.
local ABSENT, CORRUPT, WRONG_TYPE, TOO_LARGE, SLOW, AGAIN = 0, -1, -2, -3, -4, -5

-- The server does nothing else while a script runs. So a script takes on no further agents once it has read this many bytes,
-- or done this much work: a byte that is parsed counts 1, a value or an escape STEP more. It leaves them for another call.
local MOST_READ, MOST_WORK, STEP = 1048576, 131072, 32
local CHUNK = 32
local work = 0

-- Calls `each` with every agent's place and record, false where there is none, and collects what it returns. Agents beyond
-- what one call may do get AGAIN.
local function for_each_record(count, each)
  local results, read = {}, 0
  for first = 1, count, CHUNK do
    local last = math.min(first + CHUNK - 1, count)
    local records = read < MOST_READ and work < MOST_WORK and call('MGET', unpack(KEYS, first, last))
    for i = first, last do
      local record = records and records[i - first + 1]
      if records and (work < MOST_WORK or not record) then
        read = read + (record and #record or 0)
        results[i] = each(i, record)
      else
        results[i] = AGAIN
      end
    end
  end
  return results
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
