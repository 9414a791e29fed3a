# Disks are found and attached over TLS, and a host finds those alone that it may have.
begin
key=$(tls_key 1)
bring tls "$key"
let_in --tls-key tls $compat --disk "$ro_nqn"
insert 1 "$key" "$ro_nqn" "$rw_nqn" "$discovery"
nvme discover -t tcp -a "$address" -s "$port" --tls | tee /tmp/log
grep "^subnqn: *$ro_nqn\$" /tmp/log
refused grep "$rw_nqn" /tmp/log
grep '^sectype: *tls13' /tmp/log
grep '^treq: *required' /tmp/log
turned_away $connect -n "$rw_nqn" --tls
nvme connect-all -t tcp -a "$address" -s "$port" --tls
wait_for 20 has_disk "$ro_nqn"
nqn=$ro_nqn
encrypted_by TLS_AES_128_GCM_SHA256
[ "$(count_disks)" = 1 ]
