# At its own machine the home has what was written elsewhere, and nothing outside of its volume has changed.
on_target 'end'
on_target 'edges' | cmp - /tmp/edges
refused on_target 'is_locked'
on_target 'homectl activate alice'
[ "$(on_target 'cat /home/alice/answer')" = 'hello from the client' ]
on_target 'homectl deactivate alice'
