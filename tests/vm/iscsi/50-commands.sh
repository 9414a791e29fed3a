# The commands of sg3-utils: identity, capacity, opcodes, compare and write, unmap, reservations.
login "$io_iqn"
sg_inq "$dev" | grep -i 'vendor identification'
sg_vpd --page=di "$dev" | grep -i 'naa'
sg_vpd --page=bl "$dev"
sg_vpd --page=lbpv "$dev" >/tmp/lbpv
cat /tmp/lbpv
grep -q -e 'LBPU=1' -e '(LBPU): 1' /tmp/lbpv
sg_readcap --16 "$dev" | grep 'Logical block length=512'
sg_opcodes "$dev" >/tmp/opcodes
grep -iq 'compare and write' /tmp/opcodes
dd if=/dev/zero bs=512 count=2 >/tmp/pair
head -c 512 /dev/urandom >/tmp/new
dd if="$dev" bs=512 count=1 iflag=direct >/tmp/old
cat /tmp/old /tmp/new >/tmp/pair
sg_compare_and_write --in=/tmp/pair --lba=0 --num=1 --xferlen=1024 "$dev"
[ "$(dd if="$dev" bs=512 count=1 iflag=direct | sha256sum)" = "$(sha256sum </tmp/new)" ]
refused sg_compare_and_write --in=/tmp/pair --lba=0 --num=1 --xferlen=1024 "$dev"
cat /tmp/new /tmp/old >/tmp/pair
sg_compare_and_write --in=/tmp/pair --lba=0 --num=1 --xferlen=1024 "$dev"
sg_unmap --lba=2048 --num=2048 --force "$dev"
[ "$(dd if="$dev" bs=1M skip=1 count=1 iflag=direct | tr -d '\0' | wc -c)" = 0 ]
