#!lua flags=no-writes
-- instant: what the clock of the node says that holds a slot; in a Cluster each primary has a clock of its own.
--
-- KEYS[1] any        key of that slot
--
-- Returns ms
-- @include clock
return now
