-- Marks agents offline, each only if its heartbeat is still the stale one; keeps the remaining time to live, and the status
-- before in before_offline, unless it was available.
-- A heartbeat in the future, left by a step back of the server's clock, is set to now, so that the agent ages from now on.
-- KEYS   one per agent; then the key for the list of marked agents
-- ARGV   1: time to live in milliseconds, 0 for none; then per agent the JSON of last_heartbeat as it was read, '' if the
--        record had none, and 'stale' or 'future'; then a token of the call
-- return per agent 1 if this call marked it, else 0; or AGAIN

local ttl = ARGV[1]

local RESTAMP = {last_heartbeat = '"' .. stamp .. '"'}

-- Returns a text unless it is too long to be read.
local function if_readable(text)
  return #text <= MAX_STORED_BYTES and text
end

-- Returns a record of the usual form, marked offline.
local function usual_marked(record, heartbeat, status)
  local text = sub(record, 1, heartbeat - #BEFORE - #status - 1) .. 'offline' .. sub(record, heartbeat - #BEFORE)
  if status == 'available' then return text end
  local close = incarnation_at_end(text) and #text - 31 or #text
  return if_readable(sub(text, 1, close - 1) .. ',"before_offline":"' .. status .. '"' .. sub(text, close)) or text
end

-- Returns any other record, marked offline.
local function parsed_marked(record, agent)
  local field = agent.named.status
  local status = text_of(record, field) or ''
  local before = status ~= '' and status ~= 'available' and sub(record, field.from, field.to) or ''
  return changed(record, agent, {status = '"offline"', before_offline = before})
    or changed(record, agent, {status = '"offline"', before_offline = ''})
end

-- Returns the changed record; nil if the record has changed since it was read.
local function written(record, key, found, is_future)
  local heartbeat, status = usual(record, key)
  if heartbeat and not is_future then
    if sub(record, heartbeat - 1, heartbeat + #stamp) ~= found or status == 'offline' then return nil end
    return usual_marked(record, heartbeat, status)
  end
  local agent = agent_record(record, key)
  if not agent or not is_future and text_of(record, agent.named.status) == 'offline' then return nil end
  local field = agent.named.last_heartbeat
  if (field and sub(record, field.from, field.to) or '') ~= found then return nil end
  if is_future then return changed(record, agent, RESTAMP) end
  return parsed_marked(record, agent)
end

local refusal = overtaken()
if refusal then return refusal end

local marks, token, marked = table.remove(KEYS), table.remove(ARGV), {}

local function mark(key, record, i)
  local is_future = ARGV[2 * i + 1] == 'future'
  local text = record and written(record, key, ARGV[2 * i], is_future)
  if not text then return 0 end
  if not is_future then
    write(key, text)
    marked[#marked + 1] = key
    return 1
  end
  -- A time to live set before the server's clock was set back is too long.
  local left = call('PTTL', key)
  local is_too_long = ttl ~= '0' and (left < 0 or left > tonumber(ttl))
  write(key, text, is_too_long and ttl or nil)
  return 0
end

-- Catch errors, such as a missing right of the user, so that agents marked before the error are still reported.
local done, results = pcall(for_each_record, #KEYS, mark)

if #marked > 0 then call('SET', marks, cjson.encode({token, marked}), 'EX', 3600) end
if not done then error(results, 0) end
return results
