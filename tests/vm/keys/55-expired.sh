# A host whose time is over is cut off by itself.
begin
key=$(tls_key 1)
bring tls "$key"
insert 1 "$key" "$ro_nqn"
until=$(on_target "date -u -d @\$((\$(date +%s) + 20)) +%Y-%m-%dT%H:%M:%SZ")
let_in --tls-key tls $compat --expires "$until"
attach "$ro_nqn" "$connect -n $ro_nqn" --tls --reconnect-delay=1
whole
wait_for 40 not_live "$ro_nqn"
