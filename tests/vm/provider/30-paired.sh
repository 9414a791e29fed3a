# The disks of a paired machine are listed, and mounted by its name through an encrypted channel.
lent --listen 192.168.50.1 --pair
code=$(on_target 'cat /tmp/events' | grep '"event":"pairing"' | tail -n 1 | sed 's/.*"code":"\([^"]*\)".*/\1/')
echo "$code" | storagetm pair 192.168.50.1 --code-file -
volumes | tee /tmp/volumes
grep 'storagetm *lender/vda *blk *yes *12M' /tmp/volumes
grep 'storagetm *lender/vdb *blk *yes *16M' /tmp/volumes
volumes 'lender/*b' | tee /tmp/volumes
[ "$(wc -l </tmp/volumes)" = 1 ]
mount -t storage.ext4 -o ro storagetm:lender/vdb /mnt
[ "$(cat /mnt/file)" = word ]
grep . "/sys/class/nvme/$(controller_of "$rw_nqn")/tls_key" | grep -v '^0*$'
umount /mnt
storagetm detach lender
