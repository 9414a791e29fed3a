# The machine of the login is lost for some time, and comes back with the file system still mounted: nobody else gets the
# home meanwhile.
on_target 'lend --homes=alice'
attach_home
wait_for 30 homectl activate alice
echo 'before' >/home/alice/lost
sync
on_target '(sleep 1; ip link set eth0 down; sleep 25; ip link set eth0 up) >/dev/null 2>&1 &'
sleep 27
wait_for 20 on_target true
on_target 'cat /tmp/events' | grep '"event":"detached"' | grep '"reason":"timed out"'
refused env STATE_DIRECTORY=/tmp/second storagetm attach --home=alice lender
on_target 'cat /tmp/events' | grep '"event":"refused"' | grep 'without having detached it'
wait_for 30 is active
echo 'after' >>/home/alice/lost
sync
[ "$(cat /home/alice/lost)" = $'before\nafter' ]
wait_for 30 storagetm detach lender
wait_for 30 is absent
