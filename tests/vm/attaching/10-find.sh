# A machine whose door is open is found by its name, with its disks, their sizes and what may be done with them.
lent --open --listen 192.168.50.1
wait_for 40 found
grep '"name": "lender"' /tmp/found.json
grep '"192.168.50.1"' /tmp/found.json
grep "\"nqn\": \"$ro_nqn\"" /tmp/found.json
grep '"bytes": 12582912' /tmp/found.json
grep '"bytes": 16777216' /tmp/found.json
grep '^  vda, 12.6 MB, read-only$' /tmp/found
grep '^  vdb, 16.8 MB, writable$' /tmp/found
grep 'storagetm attach 192.168.50.1/vda$' /tmp/found
