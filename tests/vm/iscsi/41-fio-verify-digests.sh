# The same with header and data digests.
iscsiadm -m discovery -t sendtargets -p "$portal"
iscsiadm -m node -T "$io_iqn" -p "$portal" -o update -n 'node.conn[0].iscsi.HeaderDigest' -v CRC32C
iscsiadm -m node -T "$io_iqn" -p "$portal" -o update -n 'node.conn[0].iscsi.DataDigest' -v CRC32C
iscsiadm -m node -T "$io_iqn" -p "$portal" -l
wait_for 60 has_iscsi_disk "$io_iqn"
grep -q . /sys/class/iscsi_connection/connection*/header_digest
[ "$(cat /sys/class/iscsi_connection/connection*/header_digest)" = 1 ]
verify "/dev/$(iscsi_disk "$io_iqn")" --size=8M
