-- Decides whether a call may change a record, given their incarnations: returns nil if it may, else the outcome.
local function refused(given, stored)
  if given == '0' then return nil end
  if given <= LATEST and (stored == '0' or stored == given) then return nil end
  -- Fails on a replica, which may be out of date and must not say that an agent is absent or was replaced.
  call('PEXPIRE', WRITER, 86400000)
  if given > LATEST then return AHEAD end
  return stored > given and {REPLACED, stored} or ABSENT
end
