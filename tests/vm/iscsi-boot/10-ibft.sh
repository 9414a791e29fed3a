# The kernel has the table of the firmware: it names the target, and the card that reached it.
ibft=/sys/firmware/ibft
[ "$(cat $ibft/ethernet0/mac)" = "$(cat /sys/class/net/eth0/address)" ]
[ "$(cat $ibft/ethernet0/ip-addr)" = "${interface%/*}" ]
tell ibft "$(cat $ibft/target0/target-name) $(cat $ibft/target0/ip-addr) $(cat $ibft/target0/port) $(cat $ibft/initiator/initiator-name)"
