# Lent, the home is locked against the lender's own systemd-homed, and a host without a key does not see it. One that may
# only read is told that systemd-homed would refuse it.
on_target 'lend --homes --pair'
on_target 'is_locked'
refused on_target 'homectl activate alice'
refused storagetm attach --home --insecure 192.168.50.1
pair "$first" --name client
refused storagetm attach --home lender 2>/tmp/said
cat /tmp/said
grep 'systemd-homed refuses a home that it cannot write to' /tmp/said
on_target "storagetm host add $first --disk home-alice --writable --replace"
[ -z "$(state)" ]
