# An address on VLAN 5 of the link; the first machine has 192.168.55.1.
vconfig add eth0 5
ip addr add 192.168.55.2/24 dev eth0.5
ip link set eth0.5 up
