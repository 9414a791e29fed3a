# Where a key is needed nobody learns more than that, and the line by which a key is had.
lent --listen 192.168.50.1
wait_for 40 found
grep 'needs a key: storagetm pair 192.168.50.1$' /tmp/found
for secret in lender RO1 RW1 "$ro_nqn" "$rw_nqn" vda vdb; do
    refused grep -i -F "$secret" /tmp/found /tmp/found.json
done
refused storagetm attach "192.168.50.1/$ro_nqn"
[ "$(count_disks)" = 0 ]
