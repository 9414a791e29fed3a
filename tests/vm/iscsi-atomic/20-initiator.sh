# A stock initiator finds the limits of the disk, and programs write atomically by it.
serve atomic_wr=1 atomic_wr_max_length=128
if ! pidof iscsid >/dev/null; then
    iscsid -f -d 1 </dev/null >/tmp/iscsid.log 2>&1 &
    sleep 1
fi
iscsiadm -m discovery -t sendtargets -p $portal
iscsiadm -m node -T "$iqn" -p $portal -l
attached() { ls /sys/class/iscsi_session/session*/device/target*/*:0/block 2>/dev/null | head -n 1; }
is_attached() { [ -n "$(attached)" ] && [ -b "/dev/$(attached)" ]; }
wait_for 60 is_attached
disk=$(attached)
for limit in atomic_write_unit_min_bytes atomic_write_unit_max_bytes; do
    [ "$(cat /sys/block/$disk/queue/$limit)" = "$(cat /sys/block/$lent/queue/$limit)" ]
done
[ "$(cat /sys/block/$disk/queue/atomic_write_unit_max_bytes)" = 65536 ]
fio --name=atomic --filename=/dev/$disk --ioengine=pvsync2 --atomic=1 --direct=1 --rw=randwrite \
    --bs=16k --size=4m --verify=crc32c --verify_fatal=1 --output=/tmp/fio || { cat /tmp/fio; exit 1; }
iscsiadm -m node -T "$iqn" -p $portal -u
