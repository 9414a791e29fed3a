# With an overlay the user logs in, and the home is not changed.
on_target 'sha256sum /home/alice.home' >/tmp/sum
on_target 'lend --homes=alice --overlay home-alice'
on_target "storagetm host add $first --writable --replace"
attach_home
wait_for 30 homectl activate alice
echo 'not kept' >/home/alice/overlay
sync
wait_for 30 storagetm detach lender
wait_for 30 is absent
on_target 'end'
on_target 'sha256sum /home/alice.home' | cmp - /tmp/sum
