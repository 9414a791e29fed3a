# detach deactivates the home first, and leaves it attached if that fails.
is active
sleep 1000 </home/alice/hello &
user=$!
refused storagetm detach lender 2>/tmp/said
cat /tmp/said
grep 'the home of alice is active, and stays attached' /tmp/said
kill "$user"
wait "$user" || true
wait_for 30 storagetm detach lender
wait_for 30 is absent
[ "$(count_disks)" = 0 ]
