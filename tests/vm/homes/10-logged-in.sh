# The home of a user who is logged in is not lent: systemd-homed holds the lock, and storagetm says who it is.
wait_for 100 on_target true
on_target 'make_home' || { cat /tmp/answer; exit 1; }
on_target 'is_locked'
refused on_target 'lend --homes=alice' | tee /tmp/said
grep 'alice is logged in here' /tmp/said
on_target 'homectl deactivate alice'
refused on_target 'is_locked'
on_target 'edges' >/tmp/edges
[ -z "$(state)" ]
