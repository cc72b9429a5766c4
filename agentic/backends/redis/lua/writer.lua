-- Prepended to each script that may change more than the stamp of a heartbeat. Its last key is that of the registry
-- object which calls it, its last argument the generation of the call; both are taken off KEYS and ARGV here.

local WRITER, GENERATION = table.remove(KEYS), tonumber(table.remove(ARGV))

-- Whether the registry object has called with a higher generation since, so that this call must change nothing: then
-- that one, which the script returns. Otherwise nil, and calls with a lower one are refused from now on. To be asked
-- before the first write. `when_full`: also when the server's memory is full, for scripts that make room.
local function overtaken(when_full)
  local latest = tonumber(call('GET', WRITER) or 0)
  if latest > GENERATION then return latest end
  if latest < GENERATION then
    if when_full then call('PERSIST', WRITER) end -- A script that has written may write on.
    call('SET', WRITER, GENERATION, 'EX', 86400)
  end
end
