# A disk that is lent read-only is not given to a caller that wants to write; others get it read-only.
lent --open --listen 192.168.50.1
refused mount -t storage.ext4 -o rw storagetm:192.168.50.1/vda /mnt 2>/tmp/said
cat /tmp/said
grep 'is read-only' /tmp/said
acquire() { varlinkctl call -j "$socket" io.systemd.StorageProvider.Acquire "$1"; }
acquire '{"name":"192.168.50.1/vda"}' | grep '"readOnly":true'
acquire '{"name":"192.168.50.1/vdb"}' | grep '"readOnly":true'
acquire '{"name":"192.168.50.1/vdb","readOnly":false}' | grep '"readOnly":false'
refused acquire '{"name":"192.168.50.1/vdz"}' 2>/tmp/said
grep 'NoSuchVolume' /tmp/said
refused acquire '{"name":"192.168.50.77/vda"}' 2>/tmp/said
grep -i 'no route\|unreachable' /tmp/said
