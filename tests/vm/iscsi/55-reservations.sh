# Persistent reservations: registered, taken, shown, released.
login "$io_iqn"
sg_persist --out --register --param-sark=abc123 "$dev"
sg_persist --in --read-keys "$dev" | grep -i abc123
sg_persist --out --reserve --param-rk=abc123 --prout-type=1 "$dev"
sg_persist --in --read-reservation "$dev" | grep -i 'write exclusive'
sg_persist --in --read-full-status "$dev" | grep 'iqn.2026-01.com.example:guest'
dd if=/dev/zero of="$dev" bs=4096 count=1 oflag=direct
sg_persist --out --release --param-rk=abc123 --prout-type=1 "$dev"
sg_persist --out --register --param-rk=abc123 --param-sark=0 "$dev"
refused sh -c "sg_persist --in --read-keys $dev | grep -i abc123"
