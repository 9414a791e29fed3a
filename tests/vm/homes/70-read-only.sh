# A home that is lent read-only is attached for rescue only: systemd-homed refuses it, and storagetm has said so.
on_target 'lend /home/alice.home'
on_target 'grep -- "--homes=alice" /tmp/events'
on_target "storagetm host add $first --replace"
storagetm attach lender
wait_for 30 is inactive
refused homectl activate alice
storagetm detach lender
