# nvme discover names every lent disk, and the way to it.
nvme discover -t tcp -a "$address" -s "$port" | tee /tmp/log
for nqn in "$ro_nqn" "$rw_nqn" "$io_nqn"; do
    grep -q "^subnqn: *$nqn\$" /tmp/log
done
[ "$(grep -c "^traddr: *$address\$" /tmp/log)" -ge 3 ]
[ "$(grep -c "^trsvcid: *$port\$" /tmp/log)" -ge 3 ]
[ "$(grep -c '^subtype: *nvme subsystem' /tmp/log)" = 3 ]
