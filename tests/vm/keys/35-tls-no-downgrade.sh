# Where a key for TLS is needed, nobody comes in the clear: not even who has it.
begin
key=$(tls_key 1)
bring tls "$key"
let_in --tls-key tls $compat
insert 1 "$key" "$ro_nqn" "$discovery"
turned_away $connect -n "$ro_nqn"
turned_away nvme discover -t tcp -a "$address" -s "$port"
