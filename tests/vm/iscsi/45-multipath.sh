# The disk through two portals, by two network cards, is one disk with two paths. A card is taken down
# amid verified I/O: no request fails, no block is wrong, and the path works again when it is back.
other=10.0.2.2:$other_port
ip addr add 10.0.2.15/24 dev eth1
ip link set eth1 up
login "$io_iqn"
iscsiadm -m node -T "$io_iqn" -p "$other" -o new
set_all() { iscsiadm -m node -T "$io_iqn" -o update -n "$1" -v "$2"; }
set_all node.session.timeo.replacement_timeout 3
set_all node.conn[0].timeo.noop_out_interval 2
set_all node.conn[0].timeo.noop_out_timeout 2
# The settings are those of a login.
iscsiadm -m node -T "$io_iqn" -p "$portal" -u
iscsiadm -m node -T "$io_iqn" -l

paths() { ls -d /sys/class/iscsi_session/session*/device/target*/*:0/block/* 2>/dev/null | sed 's|.*/||'; }
has_two() { [ "$(paths | wc -l)" = 2 ]; }
wait_for 60 has_two
set -- $(paths)
[ "$(cat "/sys/block/$1/device/wwid")" = "$(cat "/sys/block/$2/device/wwid")" ]
[ "$(grep -l "^10.0.2.2" /sys/class/iscsi_connection/connection*/persistent_address | wc -l)" = 1 ]

number() { cat "/sys/block/$1/dev"; }
dmsetup --noudevsync --noudevrules create both --table "0 $(cat "/sys/block/$1/size") \
    multipath 1 queue_if_no_path 0 1 1 service-time 0 2 1 $(number "$1") 1 $(number "$2") 1"
active() { [ "$(dmsetup status both | grep -o '8:[0-9]* A' | wc -l)" = "$1" ]; }
wait_for 10 active 2
verify /dev/dm-0 --size=8M --rate_iops=100,100 &
job=$!
sleep 3
ip link set eth1 down
wait_for 60 active 1
ip link set eth1 up
running() { ! grep -qv LOGGED_IN /sys/class/iscsi_session/session*/state; }
wait_for 60 running
lost=$(dmsetup status both | grep -o '8:[0-9]* F' | cut -d ' ' -f 1)
dmsetup message both 0 "reinstate_path $lost"
wait_for 10 active 2
wait $job

# Each of the paths alone serves.
for path in "$(number "$1")" "$(number "$2")"; do
    dmsetup message both 0 "fail_path $path"
    wait_for 10 active 1
    dd if=/dev/dm-0 of=/dev/null bs=64k count=16 iflag=direct
    dmsetup message both 0 "reinstate_path $path"
    wait_for 10 active 2
done
dmsetup --noudevsync remove both
iscsiadm -m node -T "$io_iqn" -u
